"""Training transcoders on what an untouched model's MLPs read and write: all layers at once, resumable, data parallel.

Own code, because no library that trains on Hugging Face models as they are does all of it: sparsify (EleutherAI) has
per-layer TopK transcoders with and without skip connections, but neither cross-layer ones nor JumpReLU, and its command
line needs CUDA; SAELens trains on models that TransformerLens has converted.

The recipe: features begin as single tokens (`Dictionary.start_from`); the number of active features falls from several times k
to k (annealing, which keeps features alive); TopK (Gao et al. 2024) chooses per token, JumpReLU per batch with a threshold
(BatchTopK, Bussmann et al. 2024), whose values on fresh training text at the end become the JumpReLU's; features that have
long been silent learn from what the others leave over (AuxK); Adam with a linear warm-up and a cosine to zero; decoder rows of
unit length. Position 0 (the BOS token), whose features attribution graphs set to zero, is not trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.activation_stream import Activity, ActivitySource, ActivityStream
from discovery.corpus_files import Window
from discovery.dictionary import Active, Dictionary, Scaling, above, largest, threshold_for
from discovery.training_checkpoint import load_checkpoint, save_checkpoint
from discovery.training_settings import TrainingSettings
from discovery.transcoder import BadTranscoder, TranscoderSet

_FIRST_BATCHES = 8  # of each stream: what the scaling and the features' beginnings are taken from
_CALIBRATION = 8192  # tokens that thresholds are taken from at the end


@dataclass(eq=False)
class TrainingState:
    """What a run has come to; all processes hold the same."""

    dictionary: Dictionary
    """Weights."""
    optimizer: torch.optim.Adam
    """With its moments."""
    scaling: Scaling
    """Of the activity, from the first tokens that the streams gave."""
    idle: Int[Tensor, "layer feature"]
    """Tokens since each feature was active."""
    step: int = 0
    """Steps done."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished run."""

    transcoders: TranscoderSet
    """Read at the source's `reads`, write at its `writes`; float32 on the model's device."""
    curve: tuple[dict[str, float], ...]
    """Now and then along the run: step, fvu, l0, dead, on the training batches; only steps that this process saw."""


@dataclass(frozen=True, eq=False)
class _Run:
    """One process's side of a run."""

    source: ActivitySource
    windows: Sequence[Window]
    settings: TrainingSettings
    rank: int
    processes: int
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def numbers(self) -> range:
        """The streams of this process."""
        return range(self.rank, self.settings.streams, self.processes)

    def batches(self, first: int) -> Iterator[tuple[Activity, ...]]:
        """For every step, the batches of this process's streams."""
        return zip(*(self.stream(number).batches(first) for number in self.numbers), strict=True)

    def stream(self, number: int) -> ActivityStream:
        """One of the streams."""
        chosen = self.settings
        share = chosen.batch // chosen.streams
        return ActivityStream(self.source, self.windows, share, chosen.buffer, chosen.seed, number, chosen.streams)

    def all_sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums over the processes, in place."""
        if self.processes == 1:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))


def train_transcoders(
    source: ActivitySource,
    windows: Sequence[Window],
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    identity: str = "",
    save_every: int = 200,
    stop_after: int | None = None,
) -> Trained | None:
    """Trains on the windows; under torch.distributed each process takes its share of the streams.

    checkpoint: a file that is written every `save_every` steps and from which a run with the same settings and `identity` (of
    model and corpus) goes on; what it does from there is what it would have done uninterrupted. stop_after: leave after so
    many steps, with a checkpoint and None. Raises BadTranscoder for settings that do not fit, naming them.
    """
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
    if settings.streams % processes:
        raise BadTranscoder(f"training: {settings.streams} streams cannot be shared by {processes} processes")
    run = _Run(source, windows, settings, rank, processes)
    state = _begin(run)
    if checkpoint is not None and checkpoint.exists():
        load_checkpoint(checkpoint, state, settings, identity)
    last = settings.steps if stop_after is None else min(settings.steps, state.step + stop_after)
    bar = tqdm(total=settings.steps, initial=state.step, desc="transcoders", unit="step", disable=rank > 0, delay=1)
    batches = run.batches(state.step)
    with bar:
        while state.step < last:
            measured = _step(run, state, next(batches))
            bar.update()
            if state.step % 20 == 0 or state.step == last:
                run.curve.append({"step": float(state.step)} | measured)
                bar.set_postfix({name: f"{value:.3g}" for name, value in measured.items()}, refresh=False)
            if checkpoint is not None and rank == 0 and (state.step % save_every == 0 or state.step == last):
                save_checkpoint(checkpoint, state, settings, identity)
    if state.step < settings.steps:
        return None
    return Trained(_finish(run, state), tuple(run.curve))


def _begin(run: _Run) -> TrainingState:
    """Weights from the first tokens of every stream, the same in all processes."""
    settings, source = run.settings, run.source
    shares: list[Activity] = []
    for number in range(settings.streams):
        stream = run.stream(number)
        brief = replace(stream, buffer=min(stream.buffer, _FIRST_BATCHES * stream.batch))
        shares += itertools.islice(brief.batches(), _FIRST_BATCHES)
    first = _joined(shares)
    features = settings.features or 16 * first.inputs.shape[-1]
    if features <= settings.k:
        raise BadTranscoder(f"training: {features} features are too few for {settings.k} active ones")
    widths = first.inputs.shape[-1], first.outputs.shape[-1]
    dictionary = Dictionary(len(source.layers), *widths, features, settings.kind).to(first.inputs.device)
    scaling = Scaling.of(first)
    generator = torch.Generator().manual_seed(settings.seed)
    dictionary.start_from(scaling.normalise(first), settings.k_at(0), generator)
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=1.0)
    for parameter in dictionary.parameters():  # its moments, so that a checkpoint has a place to go
        moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        optimizer.state[parameter] = {"step": torch.tensor(0.0)} | moments
    idle = torch.zeros(len(source.layers), features, dtype=torch.int64, device=first.inputs.device)
    return TrainingState(dictionary, optimizer, scaling, idle)


def _step(run: _Run, state: TrainingState, shares: Sequence[Activity]) -> dict[str, float]:
    """One step of the optimiser; gives the batch's mean FVU over layers, its L0 and the share of dead features."""
    settings, dictionary = run.settings, state.dictionary
    fired = torch.zeros_like(state.idle, dtype=torch.float32)
    totals = torch.zeros(2, device=fired.device)
    for parameter in dictionary.parameters():
        parameter.grad = torch.zeros_like(parameter)
    dead = state.idle >= settings.dead_after
    for share in shares:
        loss, active, fvu = _loss(state, state.scaling.normalise(share), settings, dead)
        (loss / settings.streams).backward()
        for layer, one in enumerate(active):
            fired[layer].index_add_(0, one.features, (one.values.detach() > 0).float())
        entries = sum(one.features.numel() for one in active)
        totals += torch.stack([fvu, torch.full_like(fvu, entries / share.tokens)])
    gradients = [parameter.grad for parameter in dictionary.parameters() if parameter.grad is not None]
    run.all_sum([*gradients, fired, totals])
    for group in state.optimizer.param_groups:
        group["lr"] = settings.rate_at(state.step, dictionary.encoders[0].shape[1])
    state.optimizer.step()
    dictionary.rescale()
    state.idle = torch.where(fired > 0, 0, state.idle + settings.batch)
    state.step += 1
    fvu, entries = (totals / settings.streams).tolist()
    return {
        "fvu": fvu,
        "l0": entries / dictionary.layers,
        "dead": float((state.idle >= settings.dead_after).float().mean()),
    }


def _loss(
    state: TrainingState, batch: Activity, settings: TrainingSettings, dead: Tensor
) -> tuple[Float[Tensor, ""], list[Active], Float[Tensor, ""]]:
    """The loss of a normalised batch, its active features, and the mean over layers of the fraction of variance unexplained."""
    dictionary, k = state.dictionary, settings.k_at(state.step)
    before = [dictionary.preactivations(x, layer) for layer, x in enumerate(batch.inputs)]
    if settings.activation == "topk":
        active = [largest(h, k) for h in before]
    else:
        active = [above(h, threshold_for(h, k)) for h in before]
    left = [y - guess for y, guess in zip(batch.outputs, dictionary.rebuild(batch.inputs, active))]
    fvu = torch.stack([rest.square().mean() for rest in left]).mean()
    loss = fvu
    if settings.auxiliary and bool(dead.any()):
        loss = loss + settings.auxiliary * _auxiliary(dictionary, before, left, dead, k)
    return loss, active, fvu.detach()


def _auxiliary(
    dictionary: Dictionary, before: Sequence[Tensor], left: Sequence[Tensor], dead: Tensor, k: int
) -> Float[Tensor, ""]:
    """How badly the dead features alone rebuild what the others leave over of each layer (AuxK, Gao et al. 2024)."""
    terms: list[Tensor] = []
    for place, (source, target) in enumerate(dictionary.pairs):
        silent = dead[source].nonzero().flatten()
        if source != target or not len(silent):
            continue
        active = largest(before[source][:, silent], 2 * k)
        rest = left[target].detach()
        terms.append((rest - active.write(dictionary.decoders[place][silent])).square().mean() / rest.square().mean())
    return torch.stack(terms).sum() / dictionary.layers


@torch.no_grad()
def _finish(run: _Run, state: TrainingState) -> TranscoderSet:
    """The transcoders; for jumprelu with the thresholds that let k features through on more of the training text."""
    settings, dictionary, source = run.settings, state.dictionary, run.source
    thresholds: Tensor | None = None
    if settings.activation == "jumprelu":
        inputs = _some_inputs(run, state)
        found = [threshold_for(dictionary.preactivations(x, i), settings.k, x.shape[0]) for i, x in enumerate(inputs)]
        thresholds = torch.stack(found)[:, None].expand(-1, dictionary.features)
    return dictionary.fold(
        state.scaling,
        source.layers,
        (source.reads, source.writes),
        k=settings.k if thresholds is None else None,
        thresholds=thresholds,
        model_name=source.model.name,
    )


def _some_inputs(run: _Run, state: TrainingState) -> Float[Tensor, "layer token d_in"]:
    """Normalised inputs of some tokens from all streams' next batches, the same in all processes."""
    streams, most = run.settings.streams, max(1, _CALIBRATION // run.settings.streams)
    width = state.scaling.input_mean.shape[1]
    shares = [one.inputs[:, :most] for one in _gather(run, state.step, most)]
    count = min(share.shape[1] for share in shares)
    mine = torch.stack([share[:, :count] for share in shares], 1)
    every = mine.new_zeros(len(run.source.layers), streams, count, width)
    every[:, list(run.numbers)] = mine
    run.all_sum([every])
    return (every.flatten(1, 2) - state.scaling.input_mean[:, None]) / state.scaling.input_scale[:, None, None]


def _gather(run: _Run, first: int, tokens: int) -> list[Activity]:
    """About so many tokens of each of this process's streams, from a step on."""
    kept: list[list[Activity]] = [[] for _ in run.numbers]
    for shares in run.batches(first):
        for mine, share in zip(kept, shares):
            mine.append(share)
        if sum(share.tokens for share in kept[0]) >= tokens:
            break
    return [_joined(mine) for mine in kept]


def _joined(parts: Sequence[Activity]) -> Activity:
    """Several batches as one."""
    return Activity(torch.cat([one.inputs for one in parts], 1), torch.cat([one.outputs for one in parts], 1))
