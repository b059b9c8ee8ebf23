"""ACDC's circuit is the plain sequential loop's, on every family, whatever the order, the threshold and the batches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from discovery import journal
from discovery.ablation import COUNTERFACTUAL, ZERO
from discovery.component_model import ComponentModel
from discovery.methods import acdc
from discovery.metrics import METRICS
from discovery.model import PatchableModel
from discovery.pruning import KnownRunJudge, RestartJudge, judge_of
from discovery.workload import Workload
from graphs.topology import transformer_topology
from tests.discovery.residual_model import LOGIT_DIFFERENCE, STEPS, ResidualModel, token_batch
from tests.discovery.tiny_models import FAMILIES, tiny_model

WORK = Workload(
    (token_batch([6, 4, 6], 41, seed=1), token_batch([3, 5], 41, seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)
KL = replace(WORK, metric=METRICS["kl"])


@cache
def component_model(family: str) -> ComponentModel:
    return ComponentModel(tiny_model(family))


def plain_loop(
    model: PatchableModel, workload: Workload, tau: float, heads: str = "descending", change: str = "drop"
) -> tuple[np.ndarray, float]:
    """One candidate at a time by the model's own run, and how close the closest decision was (share of tau)."""
    topology = model.topology
    kept = topology.possible.copy()

    judge = RestartJudge(model, workload)

    def metric(mask: np.ndarray) -> float:
        return float(judge.measure(mask[None]).mean())

    now, margin = metric(kept), np.inf
    for row, column in acdc.candidates(topology, heads):  # type: ignore[arg-type]
        kept[row, column] = False
        without = metric(kept)
        lost = abs(now - without) if change == "absolute" else now - without
        margin = min(margin, abs(lost - tau) / tau)
        if lost < tau:
            now = without
        else:
            kept[row, column] = True
    return kept, margin


def check_same(model: PatchableModel, workload: Workload, options: acdc.Options) -> None:
    assert options.tau is not None
    expected, margin = plain_loop(model, workload, options.tau, options.heads, options.change)
    assert margin > 1e-3, "this tau is met to within rounding: choose another"
    assert 0 < expected.sum() < model.topology.edge_count
    found = acdc.score(model, workload, options)
    assert found.kept is not None
    np.testing.assert_array_equal(found.kept, expected)
    assert found.facts["kept"] == expected.sum()


@pytest.mark.parametrize(
    "shape", [{}, {"layers": 1, "heads": 4, "kv_heads": 2}, {"parallel": True}], ids=("plain", "kv", "parallel")
)
@pytest.mark.parametrize("heads", ["descending", "ascending"])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_circuit_is_the_plain_loops(shape: dict, heads, tau: float) -> None:
    model = ResidualModel(linear=False, **shape)
    work = Workload(
        (token_batch([4, 5, 3], seed=1), token_batch([2, 4], seed=2, first=3)), LOGIT_DIFFERENCE, COUNTERFACTUAL
    )
    for options in (acdc.Options(tau=tau, heads=heads), acdc.Options(tau=tau, heads=heads, screen=False)):
        check_same(model, work, options)


@pytest.mark.parametrize(
    ("family", "heads"),
    [("gpt2", "ascending"), ("gpt_neox-parallel", "descending"), ("llama", "descending"), ("gemma2", "ascending")],
)
def test_the_circuit_is_the_plain_loops_on_real_models(family: str, heads) -> None:
    work = KL if family == "gpt2" else WORK
    work = replace(work, batches=work.batches[1:])
    check_same(component_model(family), work, acdc.Options(tau=0.021 if heads == "ascending" else 0.11, heads=heads))


@pytest.mark.parametrize("case", ["zero", "absolute", "accuracy"])
def test_the_circuit_is_the_plain_loops_under_other_settings(case: str) -> None:
    work = {
        "zero": replace(WORK, ablation=ZERO),
        "absolute": WORK,
        "accuracy": replace(WORK, metric=STEPS),
    }[case]
    change = "absolute" if case == "absolute" else "drop"
    work = replace(work, batches=work.batches[:1])
    check_same(component_model("llama"), work, acdc.Options(tau=0.11, change=change))


def test_a_run_that_was_stopped_goes_on_from_its_journal() -> None:
    class Stopped(Exception):
        pass

    class Kept:
        content: bytes | None = None
        writes = 0

        def read(self) -> bytes | None:
            return self.content

        def write(self, content: bytes) -> None:
            self.content, self.writes = content, self.writes + 1
            if self.writes == 9:
                raise Stopped

    model, options, kept = ResidualModel(linear=False), acdc.Options(tau=0.1, screen=False), Kept()
    work = Workload((token_batch([4, 5, 3], seed=1),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    whole = acdc.score(model, work, options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_SECONDS_BETWEEN", 0)
        with pytest.raises(Stopped):
            acdc.score(model, work, options, journal=kept)
    rest = acdc.score(model, work, options, journal=kept)
    assert rest.facts["runs"] < whole.facts["runs"]
    assert whole.kept is not None
    np.testing.assert_array_equal(rest.kept, whole.kept)
    np.testing.assert_allclose(rest.values, whole.values, rtol=1e-5, atol=1e-6)


def test_a_size_can_be_asked_for() -> None:
    model = ResidualModel(linear=False)
    work = Workload((token_batch([4, 5, 3], seed=1),), LOGIT_DIFFERENCE, COUNTERFACTUAL)
    for edges in (5, 15):
        found = acdc.score(model, work, acdc.Options(edges=edges))
        again = acdc.score(model, work, acdc.Options(tau=found.facts["tau"]))
        assert found.kept is not None and abs(int(found.kept.sum()) - edges) <= 4  # sizes come in steps
        np.testing.assert_array_equal(found.kept, again.kept)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_run_judges_as_the_models_own_run(family: str) -> None:
    """Masks that shrink in random places, far from ACDC's order; after each step another one is the circuit."""
    model = component_model(family)
    rng = np.random.default_rng(0)
    kept = model.topology.possible.copy()
    with judge_of(model, KL) as known, RestartJudge(model, KL) as plain:
        assert isinstance(known, KnownRunJudge)
        np.testing.assert_allclose(known.current, plain.current, rtol=0, atol=1e-5)
        for share in (0.99, 0.9, 0.7, 0.5, 0.3):
            masks = kept & (rng.random((3, *kept.shape)) < share)
            expected = plain.measure(masks)
            np.testing.assert_allclose(known.measure(masks), expected, rtol=1e-4, atol=1e-4)
            known.accept(1)
            kept = masks[1]
            np.testing.assert_allclose(known.current, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_are_run_apart_for_the_masks_that_differ_there(family: str) -> None:
    """Edges into one layer's attention alone, here one head's and there another's, twice the same, and some together."""
    model = component_model(family)
    topology, rng = model.topology, np.random.default_rng(1)
    columns = [place for place, slot in enumerate(topology.targets) if (slot.node.layer, slot.node.kind) == (1, "head")]
    with judge_of(model, KL) as known, RestartJudge(model, KL) as plain:
        kept = topology.possible.copy()
        for _ in range(2):
            masks = np.repeat(kept[None], 7, axis=0)
            for place, column in enumerate(rng.choice(columns, 5, replace=False)):
                rows = np.flatnonzero(kept[:, column])
                masks[place, rng.choice(rows, max(1, len(rows) // 2), replace=False), column] = False
            masks[5] = masks[0]
            masks[6] &= masks[1] & masks[2]
            expected = plain.measure(masks)
            np.testing.assert_allclose(known.measure(masks), expected, rtol=1e-4, atol=1e-4)
            known.accept(6)
            kept = masks[6]
            np.testing.assert_allclose(known.current, expected[6], rtol=1e-4, atol=1e-4)


def test_candidates_are_every_edge_once_from_the_logits_back() -> None:
    topology = transformer_topology(2, 4, 2)
    down, up = acdc.candidates(topology), acdc.candidates(topology, "ascending")
    assert sorted(down) == sorted(up) == [tuple(edge) for edge in np.argwhere(topology.possible).tolist()]
    assert down != up
    names = [str(topology.targets[column]) for _, column in down]
    assert names[0] == "logits" and names.index("m1") < names.index("a1.h1<v>") < names.index("a1.h0<v>")
    names = [str(topology.targets[column]) for _, column in up]
    assert names.index("m1") < names.index("a1.h0<v>") < names.index("m0")
