"""EAP-IG's quirks that `convention = "mib"` switches on: its averages over pairs, and its `input` node."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL, Ablation
from discovery.baseline import constant_baseline
from discovery.component_model import ComponentModel
from discovery.methods import eap
from discovery.preparation import prepare_ablation
from discovery.token_input import keep_positions
from discovery.workload import Workload
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, token_batch
from tests.discovery.tiny_models import tiny_model

LENGTHS = (4, 5, 3, 5, 4, 6, 3)


@pytest.mark.parametrize("size", [1, 3, 4, 7, 20])
def test_averages_are_the_librarys(size: int) -> None:
    """One batch's score is its mean over pairs; their sum is divided by the number of pairs (EAP-IG, attribute.py)."""
    order = [3, 0, 6, 2, 5, 1, 4]  # ours go by length
    model = ResidualModel(linear=False)
    whole = token_batch([LENGTHS[place] for place in order])
    ours = Workload((replace(whole, indices=tuple(order)),), LOGIT_DIFFERENCE, COUNTERFACTUAL, size)
    per_pair = model.linearize(whole, LOGIT_DIFFERENCE, eap.CLEAN, COUNTERFACTUAL)
    in_task_order = per_pair[torch.tensor(order).argsort()]
    library = torch.stack([part.mean(0) for part in in_task_order.split(size)]).sum(0) / len(order)
    possible = model.topology.possible
    np.testing.assert_allclose(eap.score(model, ours).values[possible], library.numpy()[possible], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_position_embeddings_are_no_part_of_the_input(kind: str) -> None:
    model, batch = ComponentModel(tiny_model("gpt2")), token_batch([6, 4, 5], 41)
    plain = prepare_ablation(model, kind, (batch,))  # type: ignore[arg-type]
    table = model.hf.get_parameter("transformer.wpe.weight").detach()
    like = torch.zeros(*batch.clean.shape, table.shape[1])
    changed = constant_baseline(model.blocks, keep_positions(model, plain, (batch,)), like, batch.positions)
    tokens = model.hf.get_parameter("transformer.wte.weight").detach()
    mean = tokens[batch.corrupt[batch.mask]].mean(0) if kind == "mean" else 0
    torch.testing.assert_close(changed.entry, (mean + table[batch.positions]), atol=1e-6, rtol=1e-5)
    before = constant_baseline(model.blocks, plain, like, batch.positions)
    for one, other in zip([*changed.heads, *changed.mlps], [*before.heads, *before.mlps], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "zero"), ("gpt2", "counterfactual"), ("gpt2", "mean-positional")]
)
def test_other_models_and_ablations_stay_as_they_are(family: str, kind: str) -> None:
    model, batch = ComponentModel(tiny_model(family)), token_batch([6, 4], 41)
    ablation: Ablation = prepare_ablation(model, kind, (batch,))  # type: ignore[arg-type]
    assert keep_positions(model, ablation, (batch,)) is ablation
