"""How well transcoders or autoencoders fit a model on real activations, and what is likely wrong where they do not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from discovery.activation_stream import padded, padded_batches
from discovery.blocks import Block, find_blocks
from discovery.component_model import ComponentModel
from discovery.corpus_files import Window
from discovery.reconstruction import Figures, FitSums
from discovery.recording import Activations, Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import BadTranscoder, Site, TranscoderSet
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
    sums = FitSums(transcoders)
    with session(model.hf, model.arch, blocks), torch.no_grad():
        for sequences, free in _batches(windows, model, "activations"):
            seen = record_pass(model.hf, model.arch, blocks, sequences)
            sums.add(
                _seen_at(model, blocks, seen, free, transcoders.by_layer, transcoders.reads),
                _seen_at(model, blocks, seen, free, transcoders.biases, transcoders.writes),
            )
        layers = [_layer_check(layer, sums.figures(layer)) for layer in sorted(transcoders.biases)]
        whole = TranscoderCheck(
            transcoders.name, transcoders.reads, transcoders.writes, sums.tokens, tuple(layers), ablation
        )
        bad = [one.layer for one in layers if not one.fvu <= _DOUBTFUL_FVU]
        if bad:
            reasons = _diagnosed(model, blocks, transcoders, windows, bad)
            layers = [dataclasses.replace(one, diagnosis=reasons.get(one.layer)) for one in layers]
        if not splice:
            return dataclasses.replace(whole, layers=tuple(layers))
        means = {layer: sums.mean(layer).to(model.dtype) for layer in transcoders.biases}
        constants = {layer: mean if ablation == "mean" else mean * 0 for layer, mean in means.items()}
        losses = _losses(model, blocks, transcoders, windows, constants)
    return _with_losses(whole, layers, losses)


def _check_layers(transcoders: TranscoderSet, count: int) -> None:
    for layer in (*transcoders.by_layer, *transcoders.biases):
        if layer >= count:
            raise BadTranscoder(
                f"{transcoders.name}: there is a dictionary for layer {layer}; the model has {count} layers"
            )


def _batches(
    windows: Sequence[Window], model: ComponentModel, title: str
) -> Iterator[tuple[Sequences, Bool[Tensor, "row pos"]]]:
    """Windows of like lengths together, as many tokens at a time as one pass may have."""
    vocabulary = model.config.get_text_config().vocab_size
    most = max(1, min(_PASS_TOKENS, _PASS_LOGITS // vocabulary))
    with tqdm(total=len(windows), desc=title, unit="window", leave=False, delay=1) as bar:
        for sequences, free in padded_batches(windows, most, model.device):
            yield sequences, free
            bar.update(len(free))


def _seen_at(
    model: ComponentModel,
    blocks: Sequence[Block],
    seen: Activations,
    free: Bool[Tensor, "row pos"],
    layers: Iterable[int],
    site: Site,
) -> dict[int, Tensor]:
    """What stands at a site of some layers, at the positions that count [token d_site]."""
    return {layer: at_site(blocks, seen, layer, site)[free].to(model.dtype) for layer in layers}


def _layer_check(layer: int, found: Figures) -> LayerCheck:
    return LayerCheck(layer, found.features, found.fvu, found.l0, found.dead, found.largest)


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
