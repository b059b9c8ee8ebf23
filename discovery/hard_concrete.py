"""Hard-concrete masks over edges and nodes (Louizos et al. 2018), as Edge Pruning learns them (Bhaskar et al. 2024)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from graphs.topology import Topology

LOW, HIGH, TEMPERATURE = -0.1, 1.1, 2 / 3
"""The stretch and the temperature of the paper."""
_EDGE = 1e-6  # uniform draws stay this far from 0 and 1
_SHIFT = TEMPERATURE * math.log(-LOW / HIGH)


def draw(log_alpha: Float[Tensor, "*any"], generator: torch.Generator) -> Float[Tensor, "*any"]:
    """One draw of each mask, in [0, 1] with mass at both ends; differentiable in log_alpha."""
    uniform = torch.rand(log_alpha.shape, generator=generator, dtype=torch.float64).clamp(_EDGE, 1 - _EDGE)
    noise = torch.logit(uniform).to(device=log_alpha.device, dtype=log_alpha.dtype)
    stretched = torch.sigmoid((noise + log_alpha) / TEMPERATURE) * (HIGH - LOW) + LOW
    return stretched.clamp(0, 1)


def probability_open(log_alpha: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Probability that a mask is above 0."""
    return torch.sigmoid(log_alpha - _SHIFT)


class HardConcreteMasks:
    """A mask of every edge and of every node. A node's mask gates the edges that leave it and those that it reads.

    A slot that several heads share is open when any of them is.
    """

    def __init__(
        self, topology: Topology, edges: Float[Tensor, "src dst"], nodes: float, device: torch.device | None = None
    ) -> None:
        """edges: log alpha of the edges at the start. nodes: of every node."""
        self._topology = topology
        possible = torch.from_numpy(topology.possible)
        self._rows, self._columns = (places.to(device) for places in possible.nonzero(as_tuple=True))
        self.edges = edges[possible].to(device=device, dtype=torch.float32).clone().requires_grad_()
        self.nodes = torch.full((len(topology.sources),), float(nodes), device=device).requires_grad_()
        most = max(1, max(map(len, topology.feeds)))
        # Numbers of the nodes that each slot is read for; -1, behind all nodes, is a mask that is always closed.
        self._read_for = torch.tensor(
            [[*fed, *[-1] * (most - len(fed))] for fed in topology.feeds], dtype=torch.long, device=device
        )
        self._always = torch.tensor([not fed for fed in topology.feeds], device=device)

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "mask src dst"], Float[Tensor, "mask node"]]:
        """Masks of the whole graph, gates included, and of the nodes alone."""
        edges = draw(self.edges.expand(count, -1), generator)
        nodes = draw(self.nodes.expand(count, -1), generator)
        return self._spread(self._gated(edges, nodes)), nodes

    def probabilities(self) -> Float[Tensor, "src dst"]:
        """Probability that an edge and the nodes that gate it are open, each for itself; 0 where no edge is possible."""
        with torch.no_grad():
            edges, nodes = probability_open(self.edges)[None], probability_open(self.nodes)[None]
            return self._spread(self._gated(edges, nodes))[0]

    def _gated(
        self, edges: Float[Tensor, "mask edge"], nodes: Float[Tensor, "mask node"]
    ) -> Float[Tensor, "mask edge"]:
        closed = 1 - torch.cat([nodes, nodes.new_zeros(len(nodes), 1)], 1)
        readers = torch.where(self._always, 1.0, 1 - closed[:, self._read_for].prod(-1))
        return edges * nodes[:, self._rows] * readers[:, self._columns]

    def _spread(self, edges: Float[Tensor, "mask edge"]) -> Float[Tensor, "mask src dst"]:
        whole = edges.new_zeros(len(edges), *self._topology.possible.shape)
        return whole.index_put((torch.arange(len(edges))[:, None], self._rows, self._columns), edges)
