"""Learned masks: their distributions, gates and targets, planted circuits found, seeds, checkpoints, joint constants."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import discovery.mask_training as mask_training
from discovery.ablation import COUNTERFACTUAL
from discovery.component_model import ComponentModel
from discovery.hard_concrete import HardConcreteMasks, draw, probability_open
from discovery.mask_checkpoint import BadCheckpoint
from discovery.mask_training import TrainingPlan
from discovery.methods import METHODS, eap_ig, edge_masks, uniform_gradients
from discovery.metrics import METRICS
from discovery.optimal_ablation import LearningSettings
from discovery.preparation import AblationSettings, prepare_ablation
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.compare import average_ranks, jaccard
from graphs.prune import select_top
from graphs.topology import transformer_topology
from tests.discovery.residual_model import LOGIT_DIFFERENCE, STEPS, ResidualModel, token_batch
from tests.discovery.tiny_models import tiny_batch, tiny_model

WORK = Workload(
    (token_batch([4, 5, 3, 5], seed=1), token_batch([2, 4, 4], seed=2, first=4)), LOGIT_DIFFERENCE, COUNTERFACTUAL
)


def planted() -> tuple[ResidualModel, set[tuple[int, int]]]:
    """A model in which only a0.h0's values and m1 write anything, and the edges that therefore matter."""
    model = ResidualModel(layers=2, heads=1)
    model.unembedding *= 0.3  # no answer is certain, so that every edge shows in the KL divergence
    topology = model.topology
    head, mlp = (topology.source_names.index(name) for name in ("a0.h0", "m1"))
    value, read = (list(map(str, topology.targets)).index(name) for name in ("a0.h0<v>", "m1"))
    for slot, source in np.ndindex(len(topology.targets), len(topology.sources)):
        if (slot, source) not in ((value, head), (read, mlp)):
            model.maps[slot, source] = 0
    last = len(topology.targets) - 1
    return model, {(0, value), (0, read), (head, read), (0, last), (head, last), (mlp, last)}


class Kept:
    """A journal in memory."""

    content: bytes | None = None

    def read(self) -> bytes | None:
        return self.content

    def write(self, content: bytes) -> None:
        self.content = content


def edges_of(circuit: Circuit) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in np.argwhere(circuit.kept)}


def test_masks_are_open_as_often_as_their_probability_says() -> None:
    log_alpha = torch.tensor([-4.0, -1.0, 0.0, 2.0, 6.0])
    drawn = draw(log_alpha.expand(40_000, -1), torch.Generator().manual_seed(0))
    assert ((drawn >= 0) & (drawn <= 1)).all()
    torch.testing.assert_close((drawn > 0).float().mean(0), probability_open(log_alpha), atol=0.01, rtol=0)
    # The mirror image: as often fully open as -log_alpha is not open at all.
    torch.testing.assert_close((drawn == 1).float().mean(0), 1 - probability_open(-log_alpha), atol=0.01, rtol=0)
    assert (drawn.mean(0).diff() > 0).all()


def test_a_closed_node_closes_what_leaves_it_and_what_it_reads() -> None:
    topology = transformer_topology(2, 4, 2)
    masks = HardConcreteMasks(topology, torch.full(topology.possible.shape, 50.0), 50.0)
    with torch.no_grad():
        for name in ("a1.h0", "a1.h1", "a0.h2", "m1"):  # the first two share a key/value head
            masks.nodes[topology.source_names.index(name)] = -50.0
    keep, nodes = masks.draw(3, torch.Generator().manual_seed(0))
    assert nodes.shape == (3, len(topology.sources))
    for row, source in enumerate(topology.source_names):
        for column, slot in enumerate(map(str, topology.targets)):
            closed = source in ("a1.h0", "a1.h1", "a0.h2", "m1")
            # a0.h2 shares its keys and values with a0.h3, which is open.
            closed |= slot in ("a1.h0<q>", "a1.h1<q>", "a1.h0<k>", "a1.h0<v>", "a0.h2<q>", "m1")
            expected = float(topology.possible[row, column] and not closed)
            assert (keep[:, row, column] == expected).all(), (source, slot)
            assert float(masks.probabilities()[row, column]) == pytest.approx(expected, abs=1e-6)


def test_masks_start_in_the_order_of_the_scores() -> None:
    model = ResidualModel(linear=False)
    possible = model.topology.possible
    kl = replace(WORK, metric=METRICS["kl"])
    # A metric without a gradient: the order is that of the KL divergence.
    for work, truth in ((WORK, WORK), (kl, kl), (replace(WORK, metric=STEPS), kl)):
        strength = np.abs(eap_ig.score(model, truth).values[possible])
        masks = edge_masks.start_masks(model, work, edge_masks.Options())
        assert (np.diff(masks.edges.detach().numpy()[np.argsort(strength, kind="stable")]) > 0).all()
        found = masks.probabilities().numpy()[possible]
        assert (
            np.corrcoef(average_ranks(found), average_ranks(strength))[0, 1] > 0.99
        )  # edges into the logits have a gate less
    alike = edge_masks.start_masks(model, WORK, edge_masks.Options(start="none")).edges
    assert float(alike.detach().std()) == 0
    with pytest.raises(ValueError, match="use 'eap-ig'"):
        edge_masks.start_masks(model, replace(WORK, metric=METRICS["kl"]), edge_masks.Options(start="eap"))


@pytest.mark.parametrize("loss", ["kl", "metric"])
def test_edge_masks_find_a_planted_circuit(loss: mask_training.Loss) -> None:
    model, truth = planted()
    size = len(truth) + 0.5
    options = edge_masks.Options(
        sparsity=1 - size / model.topology.edge_count,
        start="none",
        steps=150,
        pairs=7,
        samples=3,
        rate=0.2,
        loss=loss,
        seed=1,
    )
    learned = edge_masks.learn(model, WORK, options)
    assert learned.circuit.edge_count == len(truth)
    assert edges_of(learned.circuit) == truth


def test_uniform_gradients_find_a_planted_circuit() -> None:
    model, truth = planted()
    options = uniform_gradients.Options(penalty=0.01, steps=80, pairs=7, samples=3, rate=0.3)
    learned = uniform_gradients.learn(model, WORK, options)
    assert edges_of(learned.circuit) == truth  # what is kept more likely than not
    assert edges_of(select_top(learned.scores, len(truth))) == truth


def test_the_target_sparsities_are_reached() -> None:
    model = ResidualModel(linear=False)
    model.unembedding *= 0.1
    options = edge_masks.Options(
        sparsity=0.8, node_sparsity=0.5, steps=110, pairs=7, samples=3, rate=0.3, multiplier_rate=30.0
    )
    masks = edge_masks.start_masks(model, WORK, options)
    learner = edge_masks.EdgePruning(masks, options)
    mask_training.train_masks(model, WORK, learner, TrainingPlan("edge-masks", 110, 7, 3, "kl", 0))
    with torch.no_grad():
        keep, nodes = masks.draw(50, torch.Generator().manual_seed(1))
    assert 1 - float(keep.sum()) / 50 / model.topology.edge_count == pytest.approx(0.8, abs=0.07)
    assert 1 - float(nodes.mean()) == pytest.approx(0.5, abs=0.1)
    assert learner.shown().keys() == {"sparsity", "nodes"}


@pytest.mark.parametrize("name", ["edge-masks", "uniform-gradients"])
def test_equal_seeds_learn_equally_and_seeds_agree_on_a_planted_circuit(name: str) -> None:
    model, truth = planted()
    line = METHODS[name]
    assert line.learned
    settings: dict[str, Any] = {"steps": 60, "pairs": 7, "samples": 3, "rate": 0.3, "start": "none"}
    settings |= {"sparsity": 0.6} if name == "edge-masks" else {"penalty": 0.01}
    module = line.load_learning()
    scores = [module.learn(model, WORK, line.options({**settings, "seed": seed})).scores for seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(scores[0].values, scores[1].values)
    assert not np.array_equal(scores[0].values, scores[2].values, equal_nan=True)
    circuits = [select_top(one, len(truth)) for one in scores[1:]]
    assert np.mean([jaccard(one, other) for one, other in combinations(circuits, 2)]) > 0.4  # by chance: 0.14


@pytest.mark.parametrize("name", ["edge-masks", "uniform-gradients"])
def test_a_stopped_run_goes_on_where_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, line, journal = ResidualModel(linear=False), METHODS[name], Kept()
    options = line.options({"steps": 9, "pairs": 2, "samples": 2, "start": "eap"})
    whole = line.load_learning().learn(model, WORK, options).scores.values
    monkeypatch.setattr(mask_training, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    steps = 0
    run = model.run

    def stopping(*arguments):
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(model, "run", stopping)
    with pytest.raises(KeyboardInterrupt):
        line.load_learning().learn(model, WORK, options, journal)
    again = line.load_learning().learn(model, WORK, options, journal).scores.values
    assert steps == 6 + 4  # five steps were done
    np.testing.assert_array_equal(again, whole)
    with pytest.raises(BadCheckpoint, match=r"seed = 0, not 1.*anew"):
        line.load_learning().learn(model, WORK, replace(options, seed=1), journal)
    journal.content = b"nothing"
    with pytest.raises(BadCheckpoint, match="cannot be read"):
        line.load_learning().learn(model, WORK, options, journal)


def test_coefficients_are_the_mixture_of_the_paper() -> None:
    log_odds = torch.tensor([-2.0, 0.0, 1.5]).requires_grad_()
    probability = torch.sigmoid(log_odds.detach())
    uniform = torch.rand((200_000, 3), generator=torch.Generator().manual_seed(0))
    drawn = uniform_gradients.coefficients(log_odds.expand(200_000, -1), uniform)
    inside = (drawn > 0) & (drawn < 1)
    window = probability * (1 - probability)
    torch.testing.assert_close(drawn.mean(0).detach(), probability, atol=0.005, rtol=0)
    torch.testing.assert_close(inside.float().mean(0), window, atol=0.005, rtol=0)
    # The gradient of a bent loss by the probability is what the whole step from 0 to 1 changes.
    loss = (drawn**3 + 0.5 * drawn).mean(0)
    gradient = torch.autograd.grad(loss.sum(), log_odds)[0] / window
    torch.testing.assert_close(gradient, torch.full((3,), 1.5), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["edge-masks", "uniform-gradients"])
def test_constants_are_learned_with_the_masks_under_optimal_ablation(name: str) -> None:
    model, batch, line = ComponentModel(tiny_model("gpt2")), tiny_batch(pairs=4), METHODS[name]
    settings = AblationSettings(learning=LearningSettings(steps=2))
    work = Workload((batch,), LOGIT_DIFFERENCE, prepare_ablation(model, "optimal", [batch], settings))
    # Masks that stay as they are: what is gained is the constants' doing.
    options = {"steps": 25, "pairs": 4, "samples": 2, "start": "none", "rate": 1e-9}
    uniform = torch.rand((24, *model.topology.possible.shape), generator=torch.Generator().manual_seed(0))

    def kl(constants_rate: float) -> float:
        learned = line.load_learning().learn(model, work, line.options({**options, "constants_rate": constants_rate}))
        assert learned.ablation.kind == "optimal"
        assert not learned.ablation.learning
        keep = uniform < torch.from_numpy(np.nan_to_num(learned.scores.values))
        with torch.no_grad():
            logits = model.run(batch, keep, learned.ablation)
        return -float(METRICS["kl"].compute(logits, batch, model.full_logits(batch)).mean())

    assert kl(0.05) < 0.9 * kl(0.0)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("edge-masks", {"sparsity": 1.0}, "sparsity"),
        ("edge-masks", {"node_sparsity": -0.1}, "node_sparsity"),
        ("edge-masks", {"steps": 0}, "steps"),
        ("edge-masks", {"rate": 0.0}, "rate"),
        ("edge-masks", {"seed": -1}, "seed"),
        ("edge-masks", {"start": "exact"}, "eap-ig"),
        ("uniform-gradients", {"penalty": -1.0}, "penalty"),
        ("uniform-gradients", {"samples": 0}, "samples"),
        ("uniform-gradients", {"clip": 0.0}, "clip"),
    ],
)
def test_bad_options_are_named_in_one_line(name: str, settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        METHODS[name].options(settings)
    assert "\n" not in str(error.value)


def test_a_metric_without_a_gradient_can_be_the_task_but_not_the_loss() -> None:
    model, work = ResidualModel(), replace(WORK, metric=STEPS)
    for name in ("edge-masks", "uniform-gradients"):
        line = METHODS[name]
        options = line.options({"steps": 1, "samples": 1, "start": "none"})
        assert np.isfinite(line.load().score(model, work, options).values[model.topology.possible]).all()
        with pytest.raises(ValueError, match=rf"test-accuracy.*{name}"):
            line.load().score(model, work, replace(options, loss="metric"))
