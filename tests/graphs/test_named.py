"""Labels in every export: role, rule, scores and the outcome of the causal test, read back equal, drawn where they belong."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from graphs.alignment import Prompts, align
from graphs.attribution_json import read_graph
from graphs.escape import display_width, shorten, wrapped
from graphs.exporters import ATTRIBUTION_EXPORTERS, EXPORTERS, TASK_GRAPH_EXPORTERS
from graphs.exporters.circuit_json import read_view
from graphs.exporters.neuronpedia import read_neuronpedia
from graphs.influence import prune
from graphs.label import Expectation, Label, Score
from graphs.named import COLOURS, told
from graphs.node import NodeId
from graphs.prune import select_top
from graphs.pruned import PrunedGraph
from graphs.scores import EdgeScores
from graphs.task_graph import TaskGraph
from graphs.task_graph_json import read_task_graph
from graphs.topology import transformer_topology
from graphs.view import CircuitView
from tests.graphs.hostile_labels import hostile_label
from tests.graphs.random_attribution import random_attribution

SVG = "{http://www.w3.org/2000/svg}"


def label_of(node: NodeId, passed: bool | None) -> Label:
    """A label that says something in every place."""
    expects = Expectation("ablate", "down", None if passed is None else -0.31, passed)
    scores = {"detection": Score(0.85, 0.7, 0.95, 0.48, 20), "output": Score(0.91)}
    return Label(
        node.at(None), f"fires at {node.at(None)}", "detects", "rules", "Because.", 'token:[" x"]', confidence=0.77,
        expects=expects, scores=scores,
    )  # fmt: skip


def named(nodes: Mapping[NodeId, bool | None]) -> dict[str, Label]:
    """Labels by name."""
    return {str(node.at(None)): label_of(node, passed) for node, passed in nodes.items()}


def circuit_view() -> CircuitView:
    topology = transformer_topology(2, 3, 3)
    values = np.where(topology.possible, np.random.default_rng(0).normal(size=topology.possible.shape), np.nan)
    circuit = select_top(EdgeScores(topology, values.astype(np.float32), "test"), 70)
    labels = named({NodeId("head", 0, 1): True, NodeId("mlp", 1): False, NodeId("mlp", 0): None})
    return CircuitView(circuit, labels={name: label.text for name, label in labels.items()}, named=labels)


def traced_graph() -> PrunedGraph:
    graph = prune(random_attribution(0, features=15), 0.9, 0.9)
    features = [node for node in graph.nodes if node.kind == "feature"]
    return replace(graph, named=named({features[0]: True, features[1]: False, features[2]: None}))


def task_graph() -> TaskGraph:
    graphs = [prune(random_attribution(seed, features=8), 0.9, 0.9) for seed in range(3)]
    graph = align(Prompts(graphs))
    features = [node for node in graph.nodes if node.kind == "feature"]
    return replace(graph, named=named({features[0]: True, features[1]: False, features[2]: None}))


EXPORTED: dict[str, Callable[[], bytes]] = {
    **{
        f"circuit-{name}": lambda name=name: EXPORTERS[name](circuit_view())
        for name in ("json", "svg", "dot", "graphml")
    },
    **{
        f"graph-{name}": lambda name=name: ATTRIBUTION_EXPORTERS[name](traced_graph()) for name in ATTRIBUTION_EXPORTERS
    },
    **{f"task-{name}": lambda name=name: TASK_GRAPH_EXPORTERS[name](task_graph()) for name in TASK_GRAPH_EXPORTERS},
}


@pytest.mark.parametrize("name", EXPORTED)
def test_every_export_holds_what_is_known_of_a_name(name: str) -> None:
    content = EXPORTED[name]().decode()
    for part in ("fires at ", "detects", "token:", "Because", "0.77", "0.85", "0.7", "0.95", "0.48", "0.91"):
        assert part in content, f"{name} lacks {part}"
    passed, failed = (
        ('"passed": true', '"passed": false')
        if name in ("circuit-json", "graph-json", "task-json")
        else (
            "passed",
            "failed",
        )
    )
    assert passed in content and failed in content


@pytest.mark.parametrize("which", ["circuit", "graph", "task"])
def test_signs_stand_in_the_boxes_of_tested_names_alone(which: str) -> None:
    root = ElementTree.fromstring(EXPORTED[f"{which}-svg"]())
    signs: dict[str, str] = {}
    for group in root.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        stroke = [p.get("stroke") for p in group.findall(f"{SVG}path") if p.get("stroke") in COLOURS.values()]
        if title is not None and stroke:
            assert len(stroke) == 1
            signs[(title.text or "").split(":")[0].split("@")[0]] = stroke[0] or ""
    made = {"circuit": circuit_view, "graph": traced_graph, "task": task_graph}[which]().named
    outcomes = {name: label.expects.passed for name, label in made.items() if label.expects}
    wanted = {name: COLOURS["passed" if out else "failed"] for name, out in outcomes.items() if out is not None}
    assert signs == wanted
    texts = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert "causal test of the name passed" in texts
    assert all(f"fires at {name}" in texts for name in made)


def test_pictures_without_tested_names_have_no_signs() -> None:
    view = circuit_view()
    plain = EXPORTERS["svg"](replace(view, named={})).decode()
    assert not any(colour in plain for colour in COLOURS.values()) and "causal" not in plain


def test_files_are_read_back_with_their_labels() -> None:
    view, graph, task = circuit_view(), traced_graph(), task_graph()
    assert read_view(EXPORTERS["json"](view)).named == view.named
    hostile = {str(node.at(None)): hostile_label(node) for node in graph.nodes if node.kind == "feature"}
    for one in (graph, replace(graph, named=hostile)):
        assert read_graph(ATTRIBUTION_EXPORTERS["json"](one)).same_as(one)
        assert read_neuronpedia(ATTRIBUTION_EXPORTERS["neuronpedia"](one)).same_as(one)
    assert not read_graph(ATTRIBUTION_EXPORTERS["json"](graph)).same_as(replace(graph, named={}))
    assert read_task_graph(TASK_GRAPH_EXPORTERS["json"](task)).same_as(task)
    broken = json.loads(EXPORTERS["json"](view))
    broken["named"][0]["role"] = "guesses"
    with pytest.raises(ValueError, match="'role' is 'guesses'"):
        read_view(json.dumps(broken))


def test_graphml_has_attributes_of_their_own() -> None:
    graph = nx.parse_graphml(EXPORTED["circuit-graphml"]().decode(), force_multigraph=True)
    head = graph.nodes["a0.h1"]
    assert (head["role"], head["causal_test"], head["score_detection"], head["score_detection_low"]) == (
        "detects", "passed", 0.85, 0.7,
    )  # fmt: skip
    assert graph.nodes["m1"]["causal_test"] == "failed" and "causal_test" not in graph.nodes["m0"]
    assert "role" not in graph.nodes["a0.h0"]


def test_tooltips_say_what_was_expected_and_measured() -> None:
    lines = told(label_of(NodeId("mlp", 0), False))
    assert lines[-1] == "causal test: ablate, metric expected down, measured -31% of the gap: failed"
    assert "detection 0.85 [0.70, 0.95] (shuffled 0.48)" in lines[-2]
    assert told(label_of(NodeId("mlp", 0), None))[-1].endswith("not measured")


@pytest.mark.parametrize(
    "text",
    ["", "short", 'say "market","continent","bone",…', "a" * 90, "x " * 60, '"日本語","中国語","韓国語" 前', "two\n words"],
    ids=["empty", "short", "quoted", "one word", "letters", "wide", "breaks"],
)  # fmt: skip
@pytest.mark.parametrize("length", [8, 26])
def test_wrapped_lines_fit_and_hold_all_that_fits(text: str, length: int) -> None:
    lines = wrapped(text, length, 2)
    assert len(lines) <= 2 and all(display_width(line) <= length for line in lines)
    whole, at = shorten(text, 10**6).replace(" ", ""), 0
    for line in lines:
        part = line.removesuffix("…").replace(" ", "")
        assert whole.find(part, at) >= at
        at = whole.find(part, at) + len(part)
    if display_width(text) <= length:
        assert "".join(lines).replace(" ", "") == whole
