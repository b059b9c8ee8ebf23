"""Conditional scores: real runs with the strongest heads gone; a planted backup head is found."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.methods import conditional
from discovery.pruning import RestartJudge
from discovery.workload import Workload
from graphs.node import EdgeId
from tests.discovery.residual_model import LOGIT_DIFFERENCE, ResidualModel, token_batch
from tests.discovery.tiny_models import tiny_model

WORK = Workload(
    (token_batch([6, 4, 6], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)


@cache
def component_model(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


@pytest.mark.parametrize("base", ["eap", "random", "atp"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_effect_is_the_difference_of_two_plain_runs(family: str, base: str) -> None:
    model = component_model(family)
    options = conditional.Options(base=base, heads=2)
    found = conditional.score(model, WORK, options)
    gone = conditional.strongest_heads(model, WORK, options)
    assert [model.topology.source_names[row] for row in np.flatnonzero(gone)] == found.facts["ablated"]
    judge = RestartJudge(model, WORK)
    for row in range(len(model.topology.sources)):
        before = model.topology.possible.copy()
        if not gone[row]:
            before[gone] = False
        after = before.copy()
        after[row] = False
        first, second = (float(judge.measure(mask[None]).mean()) for mask in (before, after))
        assert found.values[row] == pytest.approx(first - second, rel=1e-3, abs=1e-4)


class EitherHead(ResidualModel):
    """The right answer's logit is 1 with a0.h0, 0.8 with a1.h0 alone, else 0; attribution sees a0.h0 only."""

    def _edges(self) -> list[tuple[int, int]]:
        return [self.topology.locate(EdgeId.parse(f"{head}->logits")) for head in ("a0.h0", "a1.h0")]

    def run(self, batch, keep, ablation):
        first, backup = (keep[..., row, column].float() for row, column in self._edges())
        value = torch.where(first > 0, first, 0.8 * backup)
        logits = torch.zeros(*keep.shape[:-2], len(batch.read_row), self.unembedding.shape[1])
        right = batch.step_token[batch.candidate_right]
        logits[..., torch.arange(len(right)), right] = value[..., None].expand(*value.shape, len(right))
        return logits

    def full_logits(self, batch):
        return self.run(batch, torch.from_numpy(self.topology.possible), COUNTERFACTUAL)

    def linearize(self, batch, metric, points, ablation, *rules):
        scores = torch.zeros(len(batch), *self.topology.possible.shape)
        scores[(slice(None), *self._edges()[0])] = 1.0
        return scores


def test_a_planted_backup_is_found_and_nothing_else() -> None:
    work = Workload((token_batch([4, 5, 3], seed=1),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    found = conditional.score(EitherHead(), work, conditional.Options(base="eap", heads=1))
    assert found.facts["ablated"] == ["a0.h0"]
    assert found.facts["backups"] == [{"name": "a1.h0", "alone": 0.0, "conditional": pytest.approx(0.8)}]
    expected = {"a0.h0": 0.2, "a1.h0": 0.8}
    for name, value in zip(found.topology.source_names, found.values, strict=True):
        assert value == pytest.approx(expected.get(name, 0.0), abs=1e-6)


@pytest.mark.parametrize("options", [{"base": "conditional"}, {"base": "nope"}, {"heads": 0}, {"least": -1.0}])
def test_options_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="conditional"):
        conditional.Options(**options)
