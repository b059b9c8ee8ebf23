"""A residual model in which only some nodes do anything, and the circuit that they make: the right answer to find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.node import NodeId
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, logit_difference, token_batch


def planted(nodes: tuple[str, ...] = ("a0.h1", "m0", "a1.h0", "m1"), linear: bool = True) -> ResidualModel:
    """Two layers of three heads, where every other head and MLP writes zero, and the direct edge weighs most."""
    model = ResidualModel(layers=2, heads=3, linear=linear, seed=3)
    model.maps *= 0.15
    for row, node in enumerate(model.topology.sources):
        if str(node) not in nodes:
            model.maps[:, row] = 0
    return model


def true_circuit(model: ResidualModel) -> Circuit:
    """Every edge that carries something to a node that does something with it."""
    topology = model.topology
    writes = np.array(
        [node == NodeId("input") or bool((model.maps[:, i] != 0).any()) for i, node in enumerate(topology.sources)]
    )
    reads = np.array(
        [not fed or any(bool((model.maps[i, row] != 0).any()) for row in fed) for i, fed in enumerate(topology.feeds)]
    )
    return Circuit(topology, topology.possible & writes[:, None] & reads[None, :])


def work(model: ResidualModel, pairs: int = 40, seed: int = 0) -> Workload:
    """One batch of pairs of four tokens, whose right answer is the one that the model prefers to the corrupt run's."""
    batch = token_batch([4] * pairs, seed=seed)
    with torch.no_grad():
        clean, corrupt = (
            logit_difference(model.full_logits(each), each, None)
            for each in (batch, replace(batch, clean=batch.corrupt))
        )
    flip = (clean < corrupt)[batch.candidate_pair]
    batch = replace(batch, candidate_right=batch.candidate_right ^ flip)
    return Workload((batch,), LOGIT_DIFFERENCE, COUNTERFACTUAL)
