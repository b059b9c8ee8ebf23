"""What nodes do on a task's own prompts: direct effects on its answers, and twin prompts of which only one wakes a node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.chosen_contexts import drawn_split
from discovery.component_model import ComponentModel
from discovery.evidence_settings import SPLITS, EvidenceSettings
from discovery.node_meters import FeatureMeter, WriteMeter
from discovery.passages import Passage
from discovery.projections import readout, write_directions
from discovery.recording import Activations, Sequences, record_pass, session
from discovery.sites import at_site
from discovery.transcoder import TranscoderSet
from graphs.evidence import Split


@dataclass(eq=False)
class AnswerEffects:
    """Direct effects of one meter's nodes on the first tokens of a task's answers, from each prompt's last token."""

    sides: Float[Tensor, "side node"]
    """On the logits (less their mean) of right and of wrong answers: sums over pairs of the mean over a pair's answers."""
    pairs: int = 0
    """Pairs in the sums."""
    tokens: dict[int, Tensor] = field(default_factory=dict)
    """By right answer's token: sums of the effect on it [node]."""
    counts: dict[int, int] = field(default_factory=dict)
    """Number of pairs whose right answer it is."""

    def strongest(self, node: int, count: int = 10) -> list[tuple[int, float]]:
        """Tokens of right answers and the mean effect on them, strongest first."""
        means = [(token, float(total[node]) / self.counts[token]) for token, total in self.tokens.items()]
        return sorted(means, key=lambda one: (-abs(one[1]), one[0]))[:count]

    def answers(self, node: int) -> dict[str, float]:
        """Mean effect on right and on wrong answers; a side that no pair has is left out."""
        found = {
            name: float(self.sides[place, node]) / max(1, self.pairs) for place, name in enumerate(("right", "wrong"))
        }
        return {name: value for name, value in found.items() if value == value}


@dataclass(eq=False)
class TaskEvidence:
    """What a task says of the nodes of every meter."""

    effects: list[AnswerEffects] = field(default_factory=list)
    """By meter."""
    contrasts: list[dict[int, dict[Split, list[Passage]]]] = field(default_factory=list)
    """By meter and node: prompts in which it is silent though it fires in their twins."""


@torch.no_grad()
def task_evidence(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    meters: Sequence[FeatureMeter | WriteMeter],
    batches: Sequence[Batch],
    settings: EvidenceSettings,
    documents: int,
) -> TaskEvidence:
    """One pass over both sides of every pair. documents: number of the corpus's, behind which prompts are numbered."""
    found = TaskEvidence(
        [AnswerEffects(torch.zeros(2, len(meter.nodes), dtype=model.dtype, device=model.device)) for meter in meters],
        [defaultdict(lambda: {split: [] for split in SPLITS}) for _ in meters],
    )
    for batch in tqdm(batches, desc="task", unit="batch", delay=1, leave=False):
        moved = batch.to(model.device)
        # Position 0 holds no features in attribution graphs, and rows may go on behind the prompt with an answer's tokens.
        last = moved.read_column[moved.pair_read][moved.row_pair]
        columns = torch.arange(moved.clean.shape[1], device=last.device)
        real = moved.mask & (moved.positions > 0) & (columns <= last[:, None])
        sides = [_pass(model, moved, tokens) for tokens in (moved.clean, moved.corrupt)]
        readers = _AnswerReaders.of(model, moved, sides[0])
        for number, meter in enumerate(meters):
            values = [meter.measure(seen, 0, real) for seen in sides]
            contrasts = _Contrasts(moved, real, settings, documents, found.contrasts[number])
            for side in (0, 1):
                contrasts.add(values[1 - side], values[side], side)
            written = _effects(model, transcoders, meter, sides[0], moved, readers)
            if written is not None:
                readers.add(written, found.effects[number])
    return found


def _pass(model: ComponentModel, batch: Batch, tokens: Int[Tensor, "row pos"]) -> Activations:
    with session(model.hf, model.arch, model.blocks):
        return record_pass(model.hf, model.arch, model.blocks, Sequences(tokens, batch.mask, batch.positions, None))


@dataclass(frozen=True, eq=False)
class _AnswerReaders:
    """For the first token of every answer of a batch, the direction that raises its logit at the prompt's last token."""

    pair: Int[Tensor, " answer"]
    right: Bool[Tensor, " answer"]
    token: Int[Tensor, " answer"]
    directions: Float[Tensor, "answer d_model"]
    """The final norm's denominator included."""
    count: int
    """Number of pairs."""

    @staticmethod
    def of(model: ComponentModel, batch: Batch, seen: Activations) -> _AnswerReaders:
        assert seen.final_in is not None
        first = batch.step_read == batch.pair_read[batch.candidate_pair[batch.step_candidate]]
        candidates, tokens = batch.step_candidate[first], batch.step_token[first]
        pair = batch.candidate_pair[candidates]
        rows, columns = (place[batch.pair_read] for place in (batch.read_row, batch.read_column))
        stream = seen.final_in[rows, columns].to(model.dtype)
        scale = model.final_norm.inverse_scale(model.final_norm.centre(stream))
        directions = readout(model, tokens).to(scale) * scale[pair]
        return _AnswerReaders(pair, batch.candidate_right[candidates], tokens, directions, len(batch))

    def add(self, effects: Float[Tensor, "answer node"], to: AnswerEffects) -> None:
        """Add the batch's effects on every answer."""
        for side, chosen in enumerate((self.right, ~self.right)):
            if not bool(chosen.any()):
                to.sides[side] = float("nan")
                continue
            counts = torch.bincount(self.pair[chosen], minlength=self.count).clamp(min=1)
            to.sides[side] += (effects[chosen] / counts[self.pair[chosen], None]).sum(0)
        to.pairs += self.count
        for place in self.right.nonzero().flatten().tolist():
            token = int(self.token[place])
            to.tokens[token] = to.tokens.get(token, 0) + effects[place]
            to.counts[token] = to.counts.get(token, 0) + 1


def _effects(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    meter: FeatureMeter | WriteMeter,
    seen: Activations,
    batch: Batch,
    readers: _AnswerReaders,
) -> Float[Tensor, "answer node"] | None:
    """Logits that the nodes' outputs at the prompts' last tokens add to the answers, norms' denominators as they were."""
    rows, columns = (place[batch.pair_read][readers.pair] for place in (batch.read_row, batch.read_column))
    if isinstance(meter, WriteMeter):
        own = meter.written(seen, 0)[rows, columns]
        if meter.nodes[0].kind == "mlp":
            return torch.einsum("and,ad->an", own, readers.directions)
        return torch.einsum("and,ndm,am->an", own, meter.writers(), readers.directions)
    assert transcoders is not None
    layer = meter.nodes[0].layer or 0
    active = meter.measure(seen, 0, batch.mask)[rows, columns].to(model.dtype)
    total = torch.zeros_like(active)
    for target in transcoders.by_layer[layer].decoders:
        one = write_directions(model, transcoders, layer, [node.index or 0 for node in meter.nodes], (target,))
        if one is None:
            return None
        scale = _behind(model, transcoders, seen, target, rows, columns)
        total += active * scale * (readers.directions @ one.t())
    return total


def _behind(
    model: ComponentModel, transcoders: TranscoderSet, seen: Activations, layer: int, rows: Tensor, columns: Tensor
) -> Float[Tensor, "answer 1"] | float:
    """What a norm behind the place that is written multiplies with."""
    block = model.blocks[layer]
    if transcoders.writes == "mlp-raw" and block.post_mlp_norm is not None:
        norm, value = block.post_mlp_norm, at_site(model.blocks, seen, layer, "mlp-raw")
    elif transcoders.writes == "attention-mix" and block.post_attention_norm is not None:
        norm, value = block.post_attention_norm, seen.attention_sum[layer]
    else:
        return 1.0
    return norm.inverse_scale(norm.centre(value[rows, columns].to(model.dtype)))


@dataclass(frozen=True, eq=False)
class _Contrasts:
    """Collects, for each node of a meter, prompts in which it is silent though it fires in their twin."""

    batch: Batch
    real: Bool[Tensor, "row pos"]
    settings: EvidenceSettings
    documents: int
    found: dict[int, dict[Split, list[Passage]]]

    def add(self, active: Float[Tensor, "row pos node"], silent: Float[Tensor, "row pos node"], side: int) -> None:
        """side: 0 where the silent prompts are the clean ones, 1 the corrupt ones."""
        peaks, places = active.abs().max(1)
        wanted = (peaks > 0) & (silent.abs().amax(1) == 0)
        wanted &= wanted.cumsum(0) <= 4 * self.settings.negatives  # enough for both splits and texts that occur twice
        tokens = (self.batch.clean, self.batch.corrupt)[side]
        starts, ends = self.real.long().argmax(1).tolist(), (self.real.cumsum(1).argmax(1) + 1).tolist()
        first = (~self.batch.mask).sum(1).tolist()
        for row, node in wanted.nonzero().tolist():
            pair = self.batch.indices[int(self.batch.row_pair[row])]
            mine = self.found[node][drawn_split(self.settings, pair)]
            last = max(starts[row], ends[row] - self.settings.width)
            start = min(max(int(places[row, node]) - self.settings.before, starts[row]), last)
            ids = tuple(tokens[row, start : min(start + self.settings.width, ends[row])].tolist())
            number = self.documents + 2 * pair + side
            mine.append(Passage("hard-negative", number, start - first[row], ids, (0.0,) * len(ids)))
