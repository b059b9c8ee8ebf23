"""Graphs of many prompts: counted and averaged as by hand, whatever the lengths; pairs compared; files read back equal."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from graphs.alignment import Prompts, align, contrast
from graphs.attribution import CONSTANTS, AttributionGraph
from graphs.influence import prune
from graphs.json_fields import BadGraphFile
from graphs.node import NodeId
from graphs.pruned import PrunedGraph
from graphs.task_graph import TaskGraph, wilson
from graphs.task_graph_json import export_json, read_task_graph
from tests.graphs.random_attribution import random_attribution


def _variant(seed: int, noise: float = 0.4) -> AttributionGraph:
    """One graph with weights that differ from prompt to prompt."""
    base, rng = random_attribution(3, features=25), np.random.default_rng(seed)
    data = base.weights.data * (1 + noise * rng.normal(size=base.weights.nnz)) * (rng.random(base.weights.nnz) > 0.3)
    weights = csr_array((data.astype(np.float32), base.weights.indices, base.weights.indptr), shape=base.weights.shape)
    flows = ~np.isin(base.kinds, CONSTANTS)
    return replace(base, weights=weights, absolute=np.abs(weights.toarray()[:, flows], dtype=np.float64).sum(1))


def _by_hand(graphs: list[PrunedGraph], rename: Callable[[NodeId], str]) -> list[dict[str, float]]:
    """Weight of each aligned edge in each prompt, outputs merged by their weights."""
    found = []
    for graph in graphs:
        share = dict(zip(graph.targets.tolist(), graph.target_weights / graph.target_weights.sum()))
        edges: dict[str, float] = defaultdict(float)
        for (source, target), weight in zip(graph.edges.tolist(), graph.weights.tolist()):
            factor = share.get(target, 1.0) if graph.nodes[target].kind == "logit" else 1.0
            edges[f"{rename(graph.nodes[source])}->{rename(graph.nodes[target])}"] += weight * factor
        found.append(dict(edges))
    return found


def _check(graph: TaskGraph, expected: list[dict[str, float]], sign: int = 1, side: int = 0) -> None:
    names = graph.edge_names
    assert set(names) >= {name for edges in expected for name in edges}
    for place, name in enumerate(names):
        values = [edges.get(name, 0.0) for edges in expected]
        assert graph.edge_counts[side, place] == sum(name in edges for edges in expected)
        assert graph.weights[side, place] == pytest.approx(np.mean(values), abs=1e-9)


def test_prompts_of_one_length_are_aligned_by_position() -> None:
    graphs = [prune(_variant(seed)) for seed in range(5)]
    task = align(Prompts(graphs))

    def rename(node: NodeId) -> str:
        kinds = {"token": f"input@{node.position}", "logit": "logits"}
        return kinds.get(node.kind, str(node))

    expected = _by_hand(graphs, rename)
    _check(task, expected)
    assert set(task.edge_names) == {name for edges in expected for name in edges}
    for place, name in enumerate(task.edge_names):
        values = np.array([edges.get(name, 0.0) for edges in expected])
        assert task.effect[place] == pytest.approx(values.mean(), abs=1e-9)
        assert task.stderr[place] == pytest.approx(values.std(ddof=1) / np.sqrt(5), rel=1e-4, abs=1e-7)
        same = np.sign(values[values != 0]) == np.sign(values.mean())
        assert task.agreement[place] == pytest.approx(same.mean())
    for place, node in enumerate(task.nodes):
        if node.kind == "feature":
            assert task.node_counts[0, place] == sum(node in graph.index for graph in graphs)
            total = sum(graph.influence[graph.index[node]] for graph in graphs if node in graph.index)
            assert task.influence[0, place] == pytest.approx(total / 5)
    assert task.scores["prompts.replacement"] == pytest.approx(
        np.mean([graph.scores.replacement for graph in graphs if graph.scores])
    )
    assert task.nodes[-1] == NodeId("logits")
    assert task.texts["logits"] == " seven"


def _shifted(graph: PrunedGraph, by: int) -> PrunedGraph:
    """The same graph behind `by` more tokens."""
    nodes = tuple(node.at(int(node.position or 0) + by) for node in graph.nodes)
    return replace(graph, nodes=nodes, tokens=("x",) * by + graph.tokens, token_ids=(0,) * by + graph.token_ids)


def test_prompts_of_several_lengths_are_aligned_from_the_end_or_by_span() -> None:
    graphs = [prune(_variant(seed)) for seed in range(3)]
    moved = [_shifted(graph, by) for by, graph in enumerate(graphs)]
    one, other = align(Prompts(graphs)), align(Prompts(moved))

    def from_end(node: NodeId) -> NodeId:
        return node if node.position is None else node.at(int(node.position) - 5)

    assert set(map(from_end, one.nodes)) <= set(other.nodes)
    assert len(one.edges) == len(other.edges)
    names = ["a", "b", "c", "d", "e"]
    spans = [{place + by: name for place, name in enumerate(names)} for by in range(3)]
    named = align(Prompts(moved, spans))
    assert named.places == ("other", *names)
    assert len(named.edges) == len(one.edges)
    by_name = dict(zip(one.edge_names, one.effect))
    for name, value in zip(named.edge_names, named.effect):
        for place, span in enumerate(names):
            name = name.replace(f"@{span}", f"@{place}")
        assert value == pytest.approx(by_name[name])


def test_a_span_of_several_tokens_sums_over_them() -> None:
    graphs = [prune(_variant(seed)) for seed in range(3)]
    spans = [{0: "start", 1: "start", 2: "middle", 3: "middle", 4: "end"}] * 3

    def rename(node: NodeId) -> str:
        span = spans[0][int(node.position or 0)]
        kinds = {"token": f"input@{span}", "logit": "logits"}
        return kinds.get(node.kind, str(node.at(span)))

    _check(align(Prompts(graphs, spans)), _by_hand(graphs, rename))


def test_targets_may_stay_apart_and_rare_edges_may_go() -> None:
    graphs = [prune(_variant(seed)) for seed in range(4)]
    apart = align(Prompts(graphs), merge_targets=False)
    assert {str(node) for node in apart.nodes} >= {"logit7@4", "logit3@4"}
    often = align(Prompts(graphs), least_frequency=0.75)
    everything = align(Prompts(graphs))
    assert often.edge_counts.min() == 3
    assert len(often.edges) == (everything.edge_counts[0] >= 3).sum() < len(everything.edges)
    in_edges = {often.nodes[place] for place in often.edges.ravel().tolist()}
    assert all(node in in_edges for node in often.nodes if node.kind in ("feature", "error"))


def test_clean_against_corrupt_compares_pairs() -> None:
    clean, corrupt = ([prune(_variant(seed + at)) for seed in range(4)] for at in (0, 50))
    graph = contrast(Prompts(clean), Prompts(corrupt))

    def rename(node: NodeId) -> str:
        kinds = {"token": f"input@{node.position}", "logit": "logits"}
        return kinds.get(node.kind, str(node))

    sides = _by_hand(clean, rename), _by_hand(corrupt, rename)
    for side, expected in enumerate(sides):
        _check(graph, expected, side=side)
    for place, name in enumerate(graph.edge_names):
        pairs = np.array([one.get(name, 0.0) - other.get(name, 0.0) for one, other in zip(*sides)])
        assert graph.effect[place] == pytest.approx(pairs.mean(), abs=1e-9)
        assert graph.stderr[place] == pytest.approx(pairs.std(ddof=1) / 2, rel=1e-4, abs=1e-7)
        assert graph.agreement[place] == pytest.approx(
            (np.sign(pairs[pairs != 0]) == np.sign(pairs.mean())).mean(), nan_ok=True
        )
    same = contrast(Prompts(clean), Prompts(clean))
    assert (same.effect == 0).all()
    assert np.isnan(same.agreement).all()
    np.testing.assert_allclose(contrast(Prompts(corrupt), Prompts(clean)).effect, -graph.effect, atol=1e-9)


def test_unpruned_graphs_tell_the_weights_of_pruned_edges() -> None:
    whole = [_variant(seed) for seed in range(4)]
    graphs = [prune(graph, 0.6, 0.8) for graph in whole]
    blind, seeing = align(Prompts(graphs)), align(Prompts(graphs, whole=whole))
    assert blind.edge_names == seeing.edge_names
    np.testing.assert_array_equal(blind.edge_counts, seeing.edge_counts)
    differs = 0
    for place, name in enumerate(seeing.edge_names):
        source, target = name.split("->")
        values = []
        for graph in whole:
            ends = [
                {"input": [i for i, n in enumerate(graph.nodes) if n.kind == "token" and str(n).endswith(end[5:])],
                 "logits": graph.targets.tolist()}.get(end.split("@")[0]) or [graph.index[NodeId.parse(end)]]
                for end in (source, target)
            ]  # fmt: skip
            share = graph.target_weights / graph.target_weights.sum() if target == "logits" else [1.0]
            values.append(sum(graph.weights[t, s] * f for s in ends[0] for t, f in zip(ends[1], share)))
        assert seeing.effect[place] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-7)
        differs += abs(seeing.effect[place] - blind.effect[place]) > 1e-6
    assert differs > 5


def test_prompts_that_do_not_fit_together_are_refused() -> None:
    graph = prune(_variant(0))
    with pytest.raises(ValueError, match="no graph"):
        Prompts([])
    with pytest.raises(ValueError, match="2 spans for 1 graphs"):
        Prompts([graph], [{}, {}])
    with pytest.raises(ValueError, match="pairs"):
        contrast(Prompts([graph]), Prompts([graph, graph]))
    with pytest.raises(ValueError, match="4 and 6 layers"):
        align(Prompts([graph, replace(graph, layers=6)]))


def test_confidence_intervals_of_frequencies() -> None:
    low, high = wilson(np.array([0, 5, 10]), 10)
    np.testing.assert_allclose(low, [0, 0.2366, 0.7225], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 0.7634, 1], atol=1e-4)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = wilson(np.array([rng.binomial(20, 0.3)]), 20)
        covered += bool(low[0] <= 0.3 <= high[0])
    assert covered > 0.93 * 2000


@pytest.mark.parametrize("sides", [1, 2])
def test_files_are_read_back_equal_and_errors_name_the_field(sides: int) -> None:
    graphs = [prune(_variant(seed)) for seed in range(4)]
    graphs[0] = replace(graphs[0], labels={"f0.1": "</svg> \ud800", str(graphs[0].nodes[0]): "label"})
    graph = align(Prompts(graphs), title="t") if sides == 1 else contrast(Prompts(graphs[:2]), Prompts(graphs[2:]))
    assert graph.label(graph.nodes[0]) == "label"
    content = export_json(graph)
    assert read_task_graph(content).same_as(graph)
    cases: dict[str, Callable[[dict[str, Any]], Any]] = {
        "'format'": lambda d: d.update(version=9),
        "'counts' are not numbers of": lambda d: d["edges"][0].update(counts=[9] * sides),
        f"does not hold {sides} numbers": lambda d: d["edges"][1].update(weights=[1.0] * 3),
        "listed twice": lambda d: d["edges"].append(d["edges"][0]),
        "there is no node": lambda d: d["edges"][0].update(source="f9.9@9"),
        "is not a node name": lambda d: d["nodes"].append({**d["nodes"][0], "node": "nothing"}),
        "'sides' are not": lambda d: d.update(sides=["a", "b", "c"]),
        "'places' are not": lambda d: d.update(places=[None]),
        "'effect' is missing": lambda d: d["edges"][0].pop("effect"),
    }
    for message, change in cases.items():
        data = json.loads(content)
        change(data)
        with pytest.raises(BadGraphFile) as caught:
            read_task_graph(json.dumps(data))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
