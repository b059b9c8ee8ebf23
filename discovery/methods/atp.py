"""Attribution patching of nodes (Nanda 2023): every head, MLP, q, k and v vector and neuron in three passes."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.model import PatchableModel
from discovery.node_scoring import mean_node_scores
from discovery.scoring import OnBatch
from discovery.workload import Workload
from graphs.node_scores import NodeScores


@dataclass(frozen=True)
class Options:
    """What is scored besides nodes and query, key and value vectors."""

    neurons: bool = False
    """Score every neuron of every MLP too (the entries of what its last projection reads)."""


def score(
    model: PatchableModel, workload: Workload, options: Options | None = None, on_batch: OnBatch | None = None
) -> NodeScores:
    """(clean node - ablated node) . gradient on the clean run, summed over positions; mean over pairs.

    Raises ValueError for metrics without a gradient, or whose gradient on the clean run is zero (KL), and for neurons under
    ablations by means.
    """
    options = options or Options()
    return mean_node_scores(model, workload, "atp", options.neurons, on_batch=on_batch)
