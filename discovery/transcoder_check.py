"""How well transcoders or autoencoders fit a model on real activations, and what is likely wrong where they do not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from discovery.blocks import Block, find_blocks
from discovery.component_model import ComponentModel
from discovery.corpus_files import Window
from discovery.recording import Activations, Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import BadTranscoder, TranscoderSet
from discovery.transcoder_diagnosis import diagnose
from discovery.transcoder_splice import Rebuild, Splice, constant_output, dictionary_output, next_token_loss

CheckAblation = Literal["mean", "zero"]
_DOUBTFUL_FVU = 0.3  # from here on something else is tried, though it is only named if it is much better
_PASS_TOKENS = 2048
_PASS_LOGITS = 2**27  # numbers in the logits of one pass
_DIAGNOSIS_TOKENS = 512


@dataclass(frozen=True)
class LayerCheck:
    """What one layer's dictionary does on the sample."""

    layer: int
    """The layer that is written."""
    features: int
    """Features of the dictionary that reads this layer."""
    fvu: float
    """Fraction of variance unexplained: squared errors over squared distances from the mean output, summed."""
    l0: float
    """Mean number of features that fire at a token."""
    dead: float
    """Share of features that never fire on the sample."""
    largest: float
    """Largest activation."""
    spliced_loss: float | None = None
    """Cross-entropy with the dictionary's output in the place of this layer's, in nats a token."""
    ablated_loss: float | None = None
    """The same with the ablated output (mean or zero) in its place."""
    recovered: float | None = None
    """(ablated - spliced) / (ablated - clean); 1 where nothing is lost."""
    diagnosis: str | None = None
    """What would fit better, where the FVU is bad."""


@dataclass(frozen=True)
class TranscoderCheck:
    """A whole set on one sample of text."""

    name: str
    """The set."""
    reads: str
    """Site that it reads."""
    writes: str
    """Site that it writes."""
    tokens: int
    """Tokens that are counted; positions that are the same in every text (the first ones) are not."""
    layers: tuple[LayerCheck, ...]
    """Every layer that is written."""
    ablation: CheckAblation
    """What the ablated losses put in the place of an output: its mean over the sample, or zeros."""
    clean_loss: float | None = None
    """Cross-entropy of the untouched model on the sample, in nats a token."""
    spliced_loss: float | None = None
    """With the dictionaries at all layers at once, each reading what the ones before it have left."""
    ablated_loss: float | None = None
    """With all these outputs ablated at once."""
    recovered: float | None = None
    """(ablated - spliced) / (ablated - clean) of all layers at once."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; what is not finite is null."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(part) for name, part in value.items()}
            if isinstance(value, list | tuple):
                return [plain(part) for part in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return plain(dataclasses.asdict(self))


def check_transcoders(
    model: ComponentModel,
    transcoders: TranscoderSet,
    windows: Sequence[Window],
    *,
    splice: bool = True,
    ablation: CheckAblation = "mean",
) -> TranscoderCheck:
    """Measures a set on windows of tokens, a batch at a time. splice: also the losses, 2 passes for each layer.

    Raises BadTranscoder naming the layer where the set does not fit the model's layers or widths.
    """
    blocks = find_blocks(model.hf, model.arch, False)
    _check_layers(transcoders, len(blocks))
    sums = _Sums(blocks, transcoders, model.dtype)
    with session(model.hf, model.arch, blocks), torch.no_grad():
        for sequences, free in _batches(windows, model, "activations"):
            seen = record_pass(model.hf, model.arch, blocks, sequences)
            sums.add(seen, free)
        layers = [sums.finish(layer) for layer in sorted(transcoders.biases)]
        whole = TranscoderCheck(
            transcoders.name, transcoders.reads, transcoders.writes, sums.tokens, tuple(layers), ablation
        )
        bad = [one.layer for one in layers if not one.fvu <= _DOUBTFUL_FVU]
        if bad:
            reasons = _diagnosed(model, blocks, transcoders, windows, bad)
            layers = [dataclasses.replace(one, diagnosis=reasons.get(one.layer)) for one in layers]
        if not splice:
            return dataclasses.replace(whole, layers=tuple(layers))
        constants = {layer: mean if ablation == "mean" else mean * 0 for layer, mean in sums.means().items()}
        losses = _losses(model, blocks, transcoders, windows, constants)
    return _with_losses(whole, layers, losses)


def _check_layers(transcoders: TranscoderSet, count: int) -> None:
    for layer in (*transcoders.by_layer, *transcoders.biases):
        if layer >= count:
            raise BadTranscoder(
                f"{transcoders.name}: there is a dictionary for layer {layer}; the model has {count} layers"
            )


def padded(windows: Sequence[Window], device: torch.device) -> tuple[Sequences, Bool[Tensor, "row pos"]]:
    """Windows as rows, padded on the right, and where their free positions are."""
    width = max(len(window.tokens) for window in windows)
    tokens = torch.tensor([window.tokens + (0,) * (width - len(window.tokens)) for window in windows], device=device)
    columns = torch.arange(width, device=device)
    mask = columns < torch.tensor([len(window.tokens) for window in windows], device=device)[:, None]
    free = mask & (columns >= torch.tensor([window.fixed for window in windows], device=device)[:, None])
    return Sequences(tokens, mask, columns.expand(len(windows), -1), None), free


def _batches(
    windows: Sequence[Window], model: ComponentModel, title: str
) -> Iterator[tuple[Sequences, Bool[Tensor, "row pos"]]]:
    """Windows of like lengths together, as many tokens at a time as one pass may have."""
    vocabulary = model.config.get_text_config().vocab_size
    most = max(1, min(_PASS_TOKENS, _PASS_LOGITS // vocabulary))
    ordered = sorted(windows, key=lambda window: len(window.tokens))
    with tqdm(total=len(ordered), desc=title, unit="window", leave=False, delay=1) as bar:
        while ordered:
            rows = max(1, most // len(ordered[-1].tokens))
            ordered, some = ordered[:-rows], ordered[-rows:]
            yield padded(some, model.device)
            bar.update(len(some))


class _Sums:
    """What is added up over batches. Nothing of the size of the sample is kept."""

    def __init__(self, blocks: Sequence[Block], transcoders: TranscoderSet, dtype: torch.dtype) -> None:
        self.blocks, self.transcoders, self.dtype = blocks, transcoders, dtype
        self.tokens = 0
        self.errors: dict[int, float] = {}
        self.squares: dict[int, float] = {}
        self.totals: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}
        self.largest: dict[int, float] = {}

    def add(self, seen: Activations, free: Bool[Tensor, "row pos"]) -> None:
        """One recorded batch."""
        self.tokens += int(free.sum())
        inputs, acts = {}, {}
        for one in self.transcoders:
            x = at_site(self.blocks, seen, one.layer, self.transcoders.reads)[free].to(self.dtype)
            if x.shape[-1] != one.encoder.shape[-1]:
                raise BadTranscoder(
                    f"{self.transcoders.name}: layer {one.layer} reads {one.encoder.shape[-1]} dimensions; "
                    f"{self.transcoders.reads} of the model has {x.shape[-1]}"
                )
            inputs[one.layer], acts[one.layer] = x, one.encode(x)
            fired = (acts[one.layer] != 0).sum(0)
            self.counts[one.layer] = self.counts.get(one.layer, torch.zeros_like(fired)) + fired
            self.largest[one.layer] = max(self.largest.get(one.layer, 0.0), float(acts[one.layer].max()))
        for layer in self.transcoders.biases:
            y = at_site(self.blocks, seen, layer, self.transcoders.writes)[free].to(self.dtype)
            if y.shape[-1] != len(self.transcoders.biases[layer]):
                raise BadTranscoder(
                    f"{self.transcoders.name}: layer {layer} writes {len(self.transcoders.biases[layer])} dimensions; "
                    f"{self.transcoders.writes} of the model has {y.shape[-1]}"
                )
            error = y - decoded(self.transcoders, inputs, acts, layer)
            self.errors[layer] = self.errors.get(layer, 0.0) + float(error.double().square().sum())
            self.squares[layer] = self.squares.get(layer, 0.0) + float(y.double().square().sum())
            total = y.double().sum(0)
            self.totals[layer] = self.totals.get(layer, torch.zeros_like(total)) + total

    def means(self) -> dict[int, Float[Tensor, " d_out"]]:
        """Mean output of every layer that is written."""
        return {layer: (total / self.tokens).to(self.dtype) for layer, total in self.totals.items()}

    def finish(self, layer: int) -> LayerCheck:
        """The numbers of one layer that is written."""
        spread = self.squares[layer] - float(self.totals[layer].square().sum()) / self.tokens
        fvu = self.errors[layer] / spread if spread > 0 else float("inf")
        if layer not in self.counts:
            return LayerCheck(layer, 0, fvu, 0.0, 0.0, 0.0)
        counts = self.counts[layer]
        l0, dead = float(counts.sum()) / self.tokens, float((counts == 0).double().mean())
        return LayerCheck(layer, len(counts), fvu, l0, dead, self.largest[layer])


def decoded(
    transcoders: TranscoderSet, inputs: Mapping[int, Tensor], acts: Mapping[int, Tensor], layer: int
) -> Float[Tensor, "token d_out"]:
    """`TranscoderSet.reconstruct` from activations that are there already."""
    total = transcoders.biases[layer].to(next(iter(inputs.values())))
    for one in transcoders.writers_of(layer):
        x, a = inputs[one.layer], acts[one.layer]
        total = total + a @ one.decoders[layer].to(a)
        if one.skip is not None and one.layer == layer:
            total = total + x @ one.skip.to(x).t()
    return total


def _diagnosed(
    model: ComponentModel,
    blocks: Sequence[Block],
    transcoders: TranscoderSet,
    windows: Sequence[Window],
    layers: Sequence[int],
) -> dict[int, str | None]:
    some, tokens = [], 0
    for window in windows:
        some.append(window)
        tokens += window.free
        if tokens >= _DIAGNOSIS_TOKENS:
            break
    sequences, free = padded(some, model.device)
    seen = record_pass(model.hf, model.arch, blocks, sequences)
    bar = tqdm(layers, desc="diagnosis", unit="layer", leave=False, delay=1)
    return {layer: diagnose(blocks, seen, free, transcoders, layer, model.dtype) for layer in bar}


Losses = dict[str, float]
"""Mean cross-entropy of each run by its name: clean, spliced, ablated, and the latter two with a layer behind them."""


def _losses(
    model: ComponentModel,
    blocks: Sequence[Block],
    transcoders: TranscoderSet,
    windows: Sequence[Window],
    constants: Mapping[int, Tensor],
) -> Losses:
    every = sorted(transcoders.biases)
    kinds: dict[str, Rebuild] = {"spliced": dictionary_output(transcoders), "ablated": constant_output(constants)}
    sums: Losses = {}
    count = 0
    for sequences, free in _batches(windows, model, "losses"):
        loss, number = next_token_loss(model, blocks, sequences)
        count += number
        sums["clean"] = sums.get("clean", 0.0) + loss
        for kind, rebuild in kinds.items():
            for name, layers in ((kind, every), *((f"{kind} {layer}", [layer]) for layer in every)):
                visitor = Splice(blocks, transcoders, layers, rebuild, free, model.dtype)
                sums[name] = sums.get(name, 0.0) + next_token_loss(model, blocks, sequences, visitor)[0]
    return {name: total / count for name, total in sums.items()}


def _with_losses(whole: TranscoderCheck, layers: Sequence[LayerCheck], losses: Losses) -> TranscoderCheck:
    clean = losses["clean"]

    def recovered(spliced: float, ablated: float) -> float | None:
        return (ablated - spliced) / (ablated - clean) if ablated > clean else None

    def filled(one: Any, behind: str = "") -> Any:
        spliced, ablated = losses[f"spliced{behind}"], losses[f"ablated{behind}"]
        return dataclasses.replace(
            one, spliced_loss=spliced, ablated_loss=ablated, recovered=recovered(spliced, ablated)
        )

    measured = tuple(filled(one, f" {one.layer}") for one in layers)
    return dataclasses.replace(filled(whole), layers=measured, clean_loss=clean)
