"""One streaming pass over a corpus for all nodes at once: which windows to show of each, and how often it fires.

Every node keeps the windows with the largest peaks and a uniform draw of those in which it fires, with its activations
there, and notes in which windows of a pool that all nodes share it is silent. Memory does not grow with the corpus. What is
kept depends on hashes alone and not on the order of reading, so that a pass that was stopped and taken up again, or shared
by several processes, keeps the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.component_model import ComponentModel
from discovery.corpus_plan import CorpusPlan
from discovery.evidence_settings import SPLITS
from discovery.evidence_state import load_state, save_state
from discovery.kept_windows import Chunks, KeptWindows, draw_keys, hashed, peak_keys
from discovery.node_meters import FeatureMeter, WriteMeter
from graphs.evidence import Split

_SPARE = 3  # times as many large peaks are kept as are shown: those with the same text are shown once


@dataclass(eq=False)
class GroupState:
    """What is known of one meter's nodes from the documents of one split."""

    top: KeptWindows
    """With the largest peaks; only of documents that explain."""
    sample: KeptWindows
    """A uniform draw among the windows in which a node fires."""
    silent: Bool[Tensor, "pool node"]
    """Windows of the pool in which the node does nothing; False until they have been seen."""
    fired: Int[Tensor, " node"]
    """Windows in which it fires."""
    tokens: Int[Tensor, " node"]
    """Tokens at which it is active."""
    seen: Int[Tensor, ""]
    """Tokens that were looked at."""
    written: Float[Tensor, "when node d_own"]
    """Of heads and MLPs, float64: sums of what they write where they are active, and everywhere; of features empty."""

    def merge(self, other: GroupState) -> None:
        """Add what another process saw."""
        self.top.merge(other.top)
        self.sample.merge(other.sample)
        self.silent |= other.silent
        for name in ("fired", "tokens", "seen", "written"):
            getattr(self, name).add_(getattr(other, name))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        named = {name: getattr(self, name) for name in ("silent", "fired", "tokens", "seen", "written")}
        for part in ("top", "sample"):
            named |= {f"{part}.{name}": tensor for name, tensor in getattr(self, part).tensors().items()}
        return named


@dataclass(eq=False)
class CorpusState:
    """A pass over the corpus, as far as it has come."""

    groups: dict[Split, tuple[GroupState, ...]]
    """By split, for each meter."""
    batch: int = 0
    """Batches of this process that are done."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; writing into them changes the state."""
        return {
            f"{split}.{i}.{name}": tensor
            for split, groups in self.groups.items()
            for i, group in enumerate(groups)
            for name, tensor in group.tensors().items()
        }


@dataclass(frozen=True, eq=False)
class CorpusPass:
    """The nodes and the corpus of one pass."""

    model: ComponentModel
    """The model."""
    meters: tuple[FeatureMeter | WriteMeter, ...]
    """What is measured; see `with_thresholds`."""
    plan: CorpusPlan
    """What is read."""
    offsets: tuple[Int[Tensor, " node"], ...] = field(default=(), init=False)
    """For each meter what makes its nodes' draws differ."""

    def __post_init__(self) -> None:
        made = []
        for number, meter in enumerate(self.meters):
            names = torch.arange(len(meter.nodes)) + (number + 1 << 32)
            made.append(hashed(names, self.plan.settings.seed).to(self.model.device))
        object.__setattr__(self, "offsets", tuple(made))

    def run(
        self, state_file: Path | None = None, identity: str = "", save_every: int = 50, stop_after: int | None = None
    ) -> CorpusState | None:
        """Reads the corpus. Under torch.distributed each process takes every n-th batch, and all get the whole result.

        state_file: written every `save_every` batches, from where a pass with the same `identity` goes on; each process has its
        own, with its rank in the name. stop_after: leave after so many batches, with the file written and None.
        """
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if together else (0, 1)
        batches = self.plan.batches()[rank::processes]
        state = self.begin()
        identity = f"{identity} process {rank} of {processes}"
        if state_file is not None:
            state_file = state_file if processes == 1 else state_file.with_name(f"{state_file.name}.{rank}")
            if state_file.exists():
                state.batch = load_state(state_file, state.tensors(), identity)
        last = len(batches) if stop_after is None else min(len(batches), state.batch + stop_after)
        bar = tqdm(total=len(batches), initial=state.batch, desc="corpus", unit="batch", disable=rank > 0, delay=1)
        with bar:
            while state.batch < last:
                self.add(state, *batches[state.batch])
                state.batch += 1
                bar.update()
                if state_file is not None and (state.batch % save_every == 0 or state.batch == last):
                    save_state(state_file, state.tensors(), state.batch, identity)
        if state.batch < len(batches):
            return None
        if processes > 1:
            self._gather(state, rank, processes)
        return state

    def begin(self) -> CorpusState:
        """A pass that has seen nothing."""
        return CorpusState({split: tuple(self._empty(meter, split) for meter in self.meters) for split in SPLITS})

    def _empty(self, meter: FeatureMeter | WriteMeter, split: Split) -> GroupState:
        settings, count, device = self.plan.settings, len(meter.nodes), self.model.device
        own = 0
        if isinstance(meter, WriteMeter):
            own = meter.block.d_head if meter.nodes[0].kind == "head" else meter.block.weight("q").shape[-1]
        wide = dict(dtype=torch.float64, device=device) if device.type != "mps" else dict(device=device)
        kept = _SPARE * settings.top if split == "explain" else 0
        zeros = torch.zeros(count, dtype=torch.int64, device=device)
        return GroupState(
            top=KeptWindows.empty(count, kept, settings.width, device),
            sample=KeptWindows.empty(count, settings.sample, settings.width, device),
            silent=torch.zeros(len(self.plan.pool[split]), count, dtype=torch.bool, device=device),
            fired=zeros,
            tokens=zeros.clone(),
            seen=zeros.new_zeros(()),
            written=torch.zeros(2, count, own, **wide),  # type: ignore[arg-type]
        )

    @torch.no_grad()
    def add(self, state: CorpusState, split: Split, numbers: Sequence[int]) -> None:
        """Read some windows of one split."""
        seen, first, real = self.plan.read(self.model, numbers)
        places = torch.tensor(numbers)
        chunks = real.shape[1] // self.plan.settings.width
        hashes, pool = (
            table[places, :chunks].flatten().to(real.device) for table in (self.plan.hashes, self.plan.pool_place)
        )
        for meter, offsets, group in zip(self.meters, self.offsets, state.groups[split], strict=True):
            found = meter.measure(seen, first, real)
            cut = Chunks(
                found, self.plan.settings.width, places.to(real.device), real.sum(1), self.plan.settings.before
            )
            peaks = cut.peaks()
            active = peaks > 0
            if group.top.keys.shape[1]:
                group.top.offer(peak_keys(peaks, hashes), cut)
            group.sample.offer(draw_keys(active, hashes, offsets), cut)
            group.silent[pool[pool >= 0]] = ~active.t()[pool >= 0]
            group.fired += active.sum(1)
            group.tokens += _count(found)
            group.seen += real.sum()
            if isinstance(meter, WriteMeter):
                _add_written(group.written, meter.written(seen, first), found > 0, real)

    def _gather(self, state: CorpusState, rank: int, processes: int) -> None:
        """Every process gets what all of them saw."""
        total = self.begin()
        for source in range(processes):
            theirs = state if source == rank else self.begin()
            for tensor in theirs.tensors().values():
                if tensor.numel():
                    whole = tensor.contiguous() if tensor.dtype != torch.bool else tensor.to(torch.uint8)
                    torch.distributed.broadcast(whole, source)
                    tensor.copy_(whole)
            merge_states(total, theirs)
        state.groups = total.groups


def merge_states(state: CorpusState, other: CorpusState) -> None:
    """Add to a state what another process saw."""
    for split in SPLITS:
        for mine, theirs in zip(state.groups[split], other.groups[split], strict=True):
            mine.merge(theirs)


def _count(found: Float[Tensor, "row pos node"]) -> Int[Tensor, " node"]:
    # Eight times as fast as torch.count_nonzero; exact, since a pass has fewer than 2^24 tokens.
    return found.sign().abs_().sum((0, 1)).long()


def _add_written(
    sums: Float[Tensor, "when node d_own"],
    own: Float[Tensor, "row pos node d_own"],
    active: Bool[Tensor, "row pos node"],
    real: Bool[Tensor, "row pos"],
) -> None:
    wide = own.to(sums.dtype)
    sums[0] += torch.einsum("rpnd,rpn->nd", wide, active.to(wide))
    sums[1] += torch.einsum("rpnd,rp->nd", wide, real.to(wide))


def with_thresholds(
    model: ComponentModel, meters: Sequence[FeatureMeter | WriteMeter], plan: CorpusPlan
) -> tuple[FeatureMeter | WriteMeter, ...]:
    """The meters with the norms above which heads and MLPs count as active, from a draw of the corpus's windows."""
    if not any(isinstance(meter, WriteMeter) for meter in meters):
        return tuple(meters)
    norms: dict[int, list[Tensor]] = {i: [] for i, meter in enumerate(meters) if isinstance(meter, WriteMeter)}
    for seen, first, real in plan.draw(model):
        for i, found in norms.items():
            meter = meters[i]
            assert isinstance(meter, WriteMeter)
            found.append(meter.norms(seen, first)[real])
    made = list(meters)
    for i, found in norms.items():
        ordered = torch.cat(found).sort(0).values
        place = max(1, min(len(ordered) - 1, int((1 - plan.settings.busy) * len(ordered))))
        # Between two norms that occur, so that rounding cannot change which tokens count.
        made[i] = replace(meters[i], thresholds=(ordered[place - 1] + ordered[place]) / 2)  # type: ignore[arg-type]
    return tuple(made)
