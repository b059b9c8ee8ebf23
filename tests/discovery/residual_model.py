"""A test double of the model protocol: small maps on a residual stream, linear or not; plain, not fast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from discovery.ablation import Ablation
from discovery.batch import Batch
from discovery.metrics import Metric
from discovery.model import Point, Sublayer
from discovery.node_effects import NO_FIXES, Fixes, NodeEffects
from discovery.rules import PLAIN, Rules
from graphs.node import NodeId
from graphs.topology import Topology, transformer_topology


class ResidualModel:
    """Every head and MLP adds a causal mix of linear maps of what its slots read; MLPs may squash it (`linear=False`).

    On the linear one EAP is exact patching, for every edge (a convention of the project).
    """

    def __init__(
        self,
        layers: int = 2,
        heads: int = 2,
        kv_heads: int | None = None,
        *,
        linear: bool = True,
        parallel: bool = False,
        width: int = 6,
        vocabulary: int = 11,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._topology = transformer_topology(layers, heads, kv_heads, parallel)
        self.linear = linear
        self._dropped: int | None = None
        self.width = width
        self.embedding = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
        self.places = torch.randn(64, width, generator=generator, dtype=torch.float64)
        self.unembedding = torch.randn(width, vocabulary, generator=generator, dtype=torch.float64)
        sources, targets = len(self._topology.sources), len(self._topology.targets)
        # One map for every (source, slot that it is computed from): shared k and v slots feed several heads.
        self.maps = torch.randn(targets, sources, width, width, generator=generator, dtype=torch.float64) / width**0.5
        self.decays = torch.rand(sources, generator=generator, dtype=torch.float64)  # of the mix over positions

    @property
    def topology(self) -> Topology:
        """The component graph of a transformer of this size."""
        return self._topology

    def linearize(
        self, batch: Batch, metric: Metric, points: Sequence[Point], ablation: Ablation, rules: Rules = PLAIN
    ) -> Float[Tensor, "pair src dst"]:
        """By autograd on a zero added to every slot's input."""
        with torch.no_grad():
            clean, _ = self._forward(batch, self._embed(batch, batch.clean))
            ablated = self._ablated(batch, ablation)
            difference = clean - ablated  # [src row pos d]
        gradient = torch.zeros(len(self.topology.targets), *difference.shape[1:], dtype=torch.float64)
        reference = self.full_logits(batch) if metric.needs_reference else None
        for point in points:
            probe = torch.zeros_like(gradient).requires_grad_()
            between = ablated + point.alpha * difference
            held = {row: between[row] for row, node in enumerate(self.topology.sources) if _writes(node, point.at)}
            embedded = held.pop(0) if point.at is None else clean[0]
            _, logits = self._forward(batch, embedded, probe=probe, held=held, rules=rules)
            total = metric.compute(logits, batch, reference).sum()
            gradient += point.weight * torch.autograd.grad(total, probe)[0]
        per_row = torch.einsum("srpd,trpd->rst", difference, gradient)
        scores = torch.zeros(len(batch), *self.topology.possible.shape, dtype=torch.float64)
        scores.index_add_(0, batch.row_pair, per_row)
        return (scores * torch.from_numpy(self.topology.possible)).float()

    def linearize_fixed(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes
    ) -> Float[Tensor, "pair src dst"]:
        """Heads are linear in their slots, so that the QK fix changes nothing; GradDrop detaches a layer's values."""
        layers = {node.layer for node in self.topology.sources if node.layer is not None}
        clean = [Point(1.0, 1.0)]
        if not fixes.grad_drop:
            return self.linearize(batch, metric, clean, ablation)
        if len(layers) == 1:
            return self.linearize(batch, metric, clean, ablation).abs()
        total = torch.zeros(len(batch), *self.topology.possible.shape)
        for self._dropped in sorted(layers):
            total += self.linearize(batch, metric, clean, ablation).abs() / (len(layers) - 1)
        self._dropped = None
        return total

    def linearize_nodes(
        self, batch: Batch, metric: Metric, ablation: Ablation, fixes: Fixes = NO_FIXES, neurons: bool = False
    ) -> NodeEffects:
        """A node's gradient is the sum of those of the slots that read it; slots and neurons are left out."""
        layers = sorted({node.layer for node in self.topology.sources if node.layer is not None})
        slots = torch.zeros(len(batch), len(self.topology.targets))
        if not fixes.grad_drop or len(layers) == 1:
            sources = self.linearize(batch, metric, [Point(1.0, 1.0)], ablation).sum(2)
            return NodeEffects(sources.abs() if fixes.grad_drop else sources, slots)
        total = torch.zeros(len(batch), len(self.topology.sources))
        for self._dropped in layers:
            sources = self.linearize(batch, metric, [Point(1.0, 1.0)], ablation).sum(2).abs() / (len(layers) - 1)
            total += sources * torch.tensor([node.layer != self._dropped for node in self.topology.sources])
        self._dropped = None
        return NodeEffects(total, slots)

    def flow(self, batch: Batch, tau: float) -> Float[Tensor, "pair src dst"]:
        """By loops over rows and positions; a head looks at every earlier token."""
        with torch.no_grad():
            values, _ = self._forward(batch, self._embed(batch, batch.clean))
        sources, targets = self.topology.possible.shape
        scores = torch.zeros(len(batch), sources, targets)
        for row in range(len(batch)):
            active = torch.zeros(sources, batch.clean.shape[1], dtype=torch.bool)
            for slot in reversed(range(targets)):
                seen = torch.from_numpy(self.topology.possible[:, slot]).nonzero()[:, 0]
                parts = values[seen, row]  # [src pos d]
                whole = parts.sum(0)
                near = (whole.abs().sum(-1) - (whole - parts).abs().sum(-1)).clamp(min=0)
                shares = (near / near.sum(0)).nan_to_num()
                shares = shares * (shares >= tau)
                fed = self.topology.feeds[slot]
                if not fed:
                    reached = [int(batch.read_column[row])]
                else:
                    last = active[list(fed)].any(0).nonzero()[:, 0]
                    mlp = self.topology.targets[slot].port is None
                    reached = last.tolist() if mlp or not len(last) else list(range(int(last.max()) + 1))
                    reached = [place for place in reached if batch.mask[row, place]]
                if reached:
                    active[seen[:, None], torch.tensor(reached)] |= shares[:, reached] > 0
                    scores[row, seen, slot] = shares[:, reached].mean(1).float()
        return scores

    def run(
        self, batch: Batch, keep: Float[Tensor, "*mask src dst"] | Tensor, ablation: Ablation
    ) -> Float[Tensor, "*mask read vocab"]:
        """One mask after the other."""
        keep = keep.double() * torch.from_numpy(self.topology.possible)
        ablated = self._ablated(batch, ablation)
        flat = keep.reshape(-1, *keep.shape[-2:])
        runs = [self._forward(batch, self._embed(batch, batch.clean), keep=mask, ablated=ablated)[1] for mask in flat]
        shape = (len(batch.read_row), self.unembedding.shape[1])
        logits = torch.stack(runs) if runs else keep.new_zeros(0, *shape)
        return logits.reshape(*keep.shape[:-2], *shape).float()

    def full_logits(self, batch: Batch) -> Float[Tensor, "read vocab"]:
        """A plain run."""
        with torch.no_grad():
            return self._forward(batch, self._embed(batch, batch.clean))[1].float()

    def _embed(self, batch: Batch, tokens: Tensor) -> Tensor:
        return (self.embedding[tokens] + self.places[batch.positions]) * batch.mask[..., None]

    def _ablated(self, batch: Batch, ablation: Ablation) -> Tensor:
        embedded = self._embed(batch, batch.corrupt)
        if ablation.kind == "counterfactual":
            return self._forward(batch, embedded)[0]
        assert ablation.kind == "zero"
        return torch.zeros(len(self.topology.sources), *embedded.shape, dtype=torch.float64)

    def _forward(
        self,
        batch: Batch,
        embedded: Tensor,
        keep: Tensor | None = None,
        ablated: Tensor | None = None,
        probe: Tensor | None = None,
        held: Mapping[int, Tensor] = MappingProxyType({}),
        rules: Rules = PLAIN,
    ) -> tuple[Tensor, Tensor]:
        """Values of all sources [src row pos d] and logits at the reads."""
        values = [embedded]

        def read(slot: int) -> Tensor:
            seen = [row for row in range(len(values)) if self.topology.possible[row, slot]]
            if keep is None or ablated is None:
                total = sum((values[row] for row in seen), torch.zeros_like(embedded))
            else:
                total = sum(
                    (ablated[row] + keep[row, slot] * (values[row] - ablated[row]) for row in seen),
                    torch.zeros_like(embedded),
                )
            return total if probe is None else total + probe[slot]

        for source in range(1, len(self.topology.sources)):
            slots = [slot for slot, fed in enumerate(self.topology.feeds) if source in fed]
            # Slots of one layer read before any of its heads writes, as `possible` says; reading late is the same.
            mixed = sum(
                (self._mix(source, read(slot), batch) @ self.maps[slot, source] for slot in slots),
                torch.zeros_like(embedded),
            )
            squash = not self.linear and self.topology.sources[source].kind == "mlp"
            if squash and rules.nonlinearity:
                mixed = mixed * (torch.tanh(2 * mixed) / mixed).detach().nan_to_num()
            elif squash:
                mixed = torch.tanh(2 * mixed)
            written = held.get(source, mixed * batch.mask[..., None])
            values.append(written.detach() if self.topology.sources[source].layer == self._dropped else written)
        final = read(len(self.topology.targets) - 1)[batch.read_row, batch.read_column]
        return torch.stack(values), final @ self.unembedding

    def _mix(self, source: int, value: Tensor, batch: Batch) -> Tensor:
        if self.topology.sources[source].kind == "mlp":
            return value
        places = torch.arange(value.shape[1])
        distance = (places[:, None] - places[None, :]).double()
        weights = (self.decays[source] ** distance.clamp(min=0)) * (distance >= 0)
        return torch.einsum("qk,rkd->rqd", weights, value * batch.mask[..., None])


def _writes(node: NodeId, place: Sublayer | None) -> bool:
    """Whether a node is (part of) what a point interpolates."""
    kind = "attention" if node.kind == "head" else "mlp"
    return node.layer is None if place is None else (node.layer, kind) == (place.layer, place.kind)


def token_batch(
    lengths: Sequence[int], vocabulary: int = 11, *, seed: int = 0, first: int = 0, identical: bool = False
) -> Batch:
    """Random token pairs of the given lengths, padded on the left, with one right and one wrong answer of one token."""
    generator = torch.Generator().manual_seed(seed)
    pairs, width = len(lengths), max(lengths)
    mask = torch.arange(width)[None, :] >= width - torch.tensor(lengths)[:, None]
    clean = torch.randint(vocabulary, (pairs, width), generator=generator) * mask
    corrupt = torch.randint(vocabulary, (pairs, width), generator=generator) * mask
    right = torch.randint(vocabulary, (pairs,), generator=generator)
    wrong = (right + 1 + torch.randint(vocabulary - 1, (pairs,), generator=generator)) % vocabulary
    every = torch.arange(pairs)
    return Batch(
        clean=clean,
        corrupt=clean if identical else corrupt,
        mask=mask,
        positions=(mask.long().cumsum(1) - 1).clamp(min=0),
        row_pair=every,
        read_row=every,
        read_column=torch.full((pairs,), width - 1),
        pair_read=every,
        step_read=every.repeat(2),
        step_token=torch.cat([right, wrong]),
        step_candidate=torch.arange(2 * pairs),
        candidate_pair=every.repeat(2),
        candidate_right=torch.arange(2 * pairs) < pairs,
        indices=tuple(range(first, first + pairs)),
    )


def logit_difference(logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:
    """Right answer's logit less the wrong answer's, for batches of `token_batch`; linear in the logits."""
    chosen = logits[..., batch.step_read, batch.step_token]
    sign = torch.where(batch.candidate_right, 1.0, -1.0).to(chosen)
    out = chosen.new_zeros(*chosen.shape[:-1], len(batch))
    return out.index_add(-1, batch.candidate_pair[batch.step_candidate], chosen * sign)


def first_right(logits: Tensor, batch: Batch, reference: Tensor | None) -> Tensor:
    """1 where the right answer's logit is the larger one; has no gradient."""
    return (logit_difference(logits, batch, reference) > 0).float()


LOGIT_DIFFERENCE = Metric("test-logit-diff", logit_difference)
FLAT = Metric("test-flat", logit_difference, flat_when_clean=True)
STEPS = Metric("test-accuracy", first_right, differentiable=False)
