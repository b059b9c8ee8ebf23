"""Which edges a run keeps, and how it says how surely: against plain counts, without a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from discovery.task import PromptPair, Task
from graphs.node_scores import NodeScores, edge_scores, select_nodes
from graphs.prune import SELECTIONS, select_threshold, select_top
from graphs.scores import EdgeScores
from graphs.topology import transformer_topology
from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.inputs import Inputs
from pipelines.node_results import keep_nodes
from pipelines.scoring import methods_of, rule_of
from pipelines.selection import select, sure_edges
from pipelines.settings import ConfigError, build, resolve
from pipelines.store import RunConflict, RunStore

TOPOLOGY = transformer_topology(2, 3)
RNG = np.random.default_rng(0)
SIGNAL = RNG.normal(size=TOPOLOGY.edge_count)
DRAWS = {
    "resamples": (SIGNAL + 0.3 * RNG.normal(size=(40, TOPOLOGY.edge_count))).astype(np.float32),
    "seeds": (SIGNAL + 0.3 * RNG.normal(size=(3, TOPOLOGY.edge_count))).astype(np.float32),
}


def table(values: np.ndarray) -> EdgeScores:
    """Scores of the possible edges."""
    full = np.full(TOPOLOGY.possible.shape, np.nan, dtype=np.float32)
    full[TOPOLOGY.possible] = values
    return EdgeScores(TOPOLOGY, full, "random")


SCORES = table(SIGNAL)


def configured(**selection: object) -> RunConfig:
    """A configuration with these settings of the selection."""
    return build(resolve({"selection": selection}, "test"))


def inputs(config: RunConfig) -> Inputs:
    """Inputs whose model is never loaded."""
    return Inputs(config, Task("test", (PromptPair((1,), (2,), ((3,),), ()),)), Clock())


def stored(directory: Path, draws: dict[str, np.ndarray]) -> RunStore:
    """A run that has these draws."""
    store = RunStore(directory / "run")
    store.open({"edgewise": "1", "config": {}, "inputs": {}}, "")
    store.write_draws(draws)
    return store


@pytest.mark.parametrize("least", [None, 0.5, 1.0])
def test_edges_are_counted_in_the_resamples_and_rare_ones_left_out(least: float | None, tmp_path: Path) -> None:
    config = configured(edges=20, **({} if least is None else {"min_stability": least}))
    circuit, said = select(config, inputs(config), stored(tmp_path, DRAWS), SCORES)
    often = np.mean([select_top(table(draw), 20).kept for draw in DRAWS["resamples"]], axis=0)
    expected = select_top(SCORES, 20).kept & (often >= (least or 0))
    assert np.array_equal(circuit.kept, expected)
    assert circuit.stability is not None
    np.testing.assert_allclose(circuit.stability[TOPOLOGY.possible], often[TOPOLOGY.possible], rtol=1e-6)
    assert {kind: found["draws"] for kind, found in said.items()} == {"resamples": 40, "seeds": 3}
    assert sure_edges(circuit) == (often[expected] >= 0.95).sum()
    if least is not None:
        assert 0 < circuit.edge_count < 20


def test_seeds_count_where_there_are_no_resamples(tmp_path: Path) -> None:
    config = configured(threshold=1.0, min_stability=1.0)
    circuit, said = select(config, inputs(config), stored(tmp_path, {"seeds": DRAWS["seeds"]}), SCORES)
    always = np.all([select_threshold(table(draw), 1.0).kept for draw in DRAWS["seeds"]], axis=0)
    assert np.array_equal(circuit.kept, select_threshold(SCORES, 1.0).kept & always)
    assert set(said) == {"seeds"}


def test_without_draws_stability_is_not_known_and_cannot_be_asked_for(tmp_path: Path) -> None:
    store = stored(tmp_path, {})
    circuit, said = select(configured(edges=5), inputs(configured(edges=5)), store, SCORES)
    assert circuit.stability is None
    assert said == {}
    config = configured(edges=5, min_stability=0.5)
    with pytest.raises(ConfigError, match="'random' gives no scores") as error:
        select(config, inputs(config), store, SCORES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nodes", [False, True])
def test_draws_of_nodes_select_as_the_nodes_scores_do(nodes: bool, tmp_path: Path) -> None:
    size = len(TOPOLOGY.sources)
    strength = RNG.normal(size=size).astype(np.float32)
    draws = (strength + 0.3 * RNG.normal(size=(12, size))).astype(np.float32)
    store = stored(tmp_path, {"resamples": draws})
    scores = keep_nodes(store, NodeScores(TOPOLOGY, strength, "atp"))
    config = configured(**({"nodes": 3} if nodes else {"edges": 15}))
    circuit, _ = select(config, inputs(config), store, scores)

    def cut(values: np.ndarray) -> np.ndarray:
        each = NodeScores(TOPOLOGY, values, "atp")
        return (select_nodes(each, 3) if nodes else select_top(edge_scores(each), 15)).kept

    assert np.array_equal(circuit.kept, cut(strength))
    often = np.mean([cut(draw) for draw in draws], axis=0)
    assert circuit.stability is not None
    np.testing.assert_allclose(circuit.stability[TOPOLOGY.possible], often[TOPOLOGY.possible], rtol=1e-6)


def test_draws_are_stored_whole_and_go_with_the_run(tmp_path: Path) -> None:
    store = stored(tmp_path, {})
    assert store.read_draws() == {}
    store.write_draws(DRAWS)
    for name, values in store.read_draws().items():
        np.testing.assert_array_equal(values, DRAWS[name])
    store.write_draws({})
    assert store.read_draws() == {}
    store.path("draws.safetensors").write_bytes(b"broken")
    with pytest.raises(RunConflict, match=r"draws\.safetensors"):
        store.read_draws()


@pytest.mark.parametrize(
    ("name", "rule", "wanted"),
    [
        ("information-flow", "auto", "greedy"),
        ("information-flow", "top", "top"),
        ("eap", "auto", "top"),
        ("eap", "greedy", "greedy"),
        ("eap+information-flow", "auto", "top"),
    ],
)
def test_a_method_names_its_own_selection_and_users_the_one_that_counts(
    name: str, rule: str, wanted: str, tmp_path: Path
) -> None:
    config = build(resolve({"method": {"name": name}, "selection": {"rule": rule, "edges": 12}}, "test"))
    assert rule_of(config) == wanted
    circuit, _ = select(config, inputs(config), stored(tmp_path, {}), SCORES)
    np.testing.assert_array_equal(circuit.kept, SELECTIONS[wanted](SCORES, 12, "absolute").kept)


def test_joined_methods_share_out_their_options_and_refuse_what_cannot_be_ranked() -> None:
    def of(name: str, **options: object) -> list[tuple[str, object]]:
        config = build(resolve({"method": {"name": name, **options}}, "test"))
        return [(line.name, options) for line, options in methods_of(config)]

    joined = of("eap-ig+eap", steps=3)
    assert [name for name, _ in joined] == ["eap-ig", "eap"]
    assert getattr(joined[0][1], "steps", None) == 3
    assert [name for name, _ in of("eap")] == ["eap"]
    for name, options, words in (
        ("eap+eapp", {}, "no method 'eapp'"),
        ("eap-ig+eap", {"stepps": 3}, "no option 'stepps'"),
        ("eap+atp", {}, "'atp' cannot be part"),
        ("edge-masks+eap", {}, "'edge-masks' cannot be part"),
    ):
        with pytest.raises(ValueError, match=words):
            of(name, **options)
