"""Pictures and other exports of attribution graphs: what they show is true, what is left out is said, texts stay text."""

from __future__ import annotations

import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest

from graphs.alignment import Prompts, align, contrast
from graphs.attribution_figure import attribution_figure
from graphs.exporters import ATTRIBUTION_EXPORTERS, TASK_GRAPH_EXPORTERS
from graphs.exporters.svg import NEGATIVE, POSITIVE
from graphs.figure_layout import place_figure
from graphs.figure_svg import GROUP_COLOURS
from graphs.influence import prune
from graphs.pruned import PrunedGraph, Supernode
from graphs.task_graph import TaskGraph
from tests.graphs.random_attribution import random_attribution
from tests.graphs.test_attribution_files import rich_graph

SVG = "{http://www.w3.org/2000/svg}"


def _whole(targets: str = "logits") -> PrunedGraph:
    """A graph small enough to be drawn whole."""
    return prune(random_attribution(0, features=15, targets=targets), 0.7, 0.9)


def _task() -> TaskGraph:
    return align(Prompts([rich_graph(seed=seed) for seed in range(3)]), title="a task")


def _contrast() -> TaskGraph:
    graphs = [rich_graph(seed=seed) for seed in range(4)]
    return contrast(Prompts(graphs[:2]), Prompts(graphs[2:]))


ALL: dict[str, Callable[[], bytes]] = {
    **{f"graph-{name}": lambda name=name: ATTRIBUTION_EXPORTERS[name](rich_graph()) for name in ATTRIBUTION_EXPORTERS},
    **{f"task-{name}": lambda name=name: TASK_GRAPH_EXPORTERS[name](_task()) for name in TASK_GRAPH_EXPORTERS},
    **{f"contrast-{name}": lambda name=name: TASK_GRAPH_EXPORTERS[name](_contrast()) for name in TASK_GRAPH_EXPORTERS},
}


@pytest.mark.parametrize("name", ALL)
def test_every_exporter_gives_the_same_bytes_each_time(name: str) -> None:
    assert ALL[name]() == ALL[name]()


@pytest.mark.parametrize("name", [name for name in ALL if name.endswith(("svg", "graphml"))])
def test_hostile_texts_stay_text(name: str) -> None:
    content = ALL[name]()
    root = ElementTree.fromstring(content)
    tags = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
    assert not tags & {"script", "b", "foreignObject", "a", "style"}
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]
    assert "\u202e" not in content.decode("utf-8")
    assert "alert" in "".join(root.itertext())


def _tips(content: bytes, part: str) -> dict[str, ElementTree.Element]:
    """Groups by the first line of their tooltip, of those that hold a part of text."""
    root = ElementTree.fromstring(content)
    found = {}
    for group in root.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is not None and part in (title.text or ""):
            found[(title.text or "").split("\n")[0]] = group
    return found


@pytest.mark.parametrize("targets", ["logits", "difference", "features"])
def test_a_small_graph_is_drawn_whole_by_sign_and_strength(targets: str) -> None:
    graph = _whole(targets)
    edges = _tips(ATTRIBUTION_EXPORTERS["svg"](graph), "->")
    assert len(edges) == len(graph.edges) > 4
    by_name = {tip.split("  ")[0]: group for tip, group in edges.items()}
    widths = []
    for place, name in enumerate(graph.edge_names):
        line = by_name[name].findall(f"{SVG}path")[1]
        assert line.get("stroke") == (POSITIVE if graph.weights[place] >= 0 else NEGATIVE)
        assert (line.get("stroke-dasharray") is None) == (graph.weights[place] >= 0)
        widths.append((float(graph.edge_scores[place]), float(line.get("stroke-width", "0"))))
        assert any(f"{name}  {graph.weights[place]:+.4g}" in tip for tip in edges)
    assert [width for _, width in sorted(widths)] == sorted(width for _, width in widths)
    nodes = _tips(ATTRIBUTION_EXPORTERS["svg"](graph), "influence ")
    named = {re.split("[:,]", tip)[0] for tip in nodes}
    assert {str(node) for node in graph.nodes} <= named


def test_marks_stand_over_their_tokens_in_their_layers_and_do_not_overlap() -> None:
    figure = attribution_figure(prune(random_attribution(7, features=80, width=6), 0.9, 0.95))
    placed = place_figure(figure)
    assert len(figure.marks) > 40
    boxes = [(mark, placed.boxes[mark.node]) for mark in figure.marks]
    for mark, box in boxes:
        assert placed.lines[mark.column] <= box.x
        assert box.x + box.width <= placed.lines[mark.column + 1]
    for mark, box in boxes:
        for other, its in boxes:
            if other.level > mark.level:
                assert its.y + its.height < box.y
            if other is not mark:
                apart = its.x >= box.x + box.width or box.x >= its.x + its.width
                assert apart or its.y >= box.y + box.height or box.y >= its.y + its.height
    for arrow in figure.arrows:
        assert placed.boxes[arrow.source].y > placed.boxes[arrow.target].y


def test_a_large_graph_shows_its_strongest_part_and_says_so() -> None:
    graph = prune(random_attribution(2, layers=6, width=40, features=300, density=0.2), 0.95, 0.99)
    figure = attribution_figure(graph, most_nodes=30, most_edges=50)
    inner = [mark for mark in figure.marks if mark.node.layer is not None]
    assert 20 < len(inner) <= 30
    assert len(figure.arrows) <= 80
    assert figure.columns <= 42
    leads = {arrow.source for arrow in figure.arrows}
    assert all(mark.node in leads for mark in inner)
    words = " · ".join(figure.numbers)
    kept = sum(node.kind != "token" for node in graph.nodes)
    assert f"drawn: {len(inner) + 3} of {kept} nodes, {len(figure.arrows)} edges" in words
    drawn = {(str(arrow.source), str(arrow.target)) for arrow in figure.arrows}
    shown = {mark.node for mark in figure.marks}
    between = [
        (score, name)
        for score, name, (s, t) in zip(graph.edge_scores, graph.edge_names, graph.edges.tolist())
        if graph.nodes[s] in shown and graph.nodes[t] in shown
    ]
    strongest = {tuple(name.split("->")) for _, name in sorted(between, reverse=True)[:40]}
    assert len(strongest - drawn) <= 10  # tokens whose column holds several are not drawn
    assert any(mark.lines[0].startswith("⋯") for mark in figure.marks)


def _drawn_values(graph: PrunedGraph) -> dict[tuple[str, str], float]:
    return {(str(a.source), str(a.target)): a.value for a in attribution_figure(graph).arrows}


@pytest.mark.parametrize("seed", range(6))
def test_members_of_a_supernode_at_one_position_are_drawn_as_one(seed: int) -> None:
    graph = prune(random_attribution(seed, features=20, width=3, layers=3), 0.9, 0.9)
    features = [node for node in graph.nodes if node.kind == "feature" and node.position == 2]
    members = tuple(features[seed % 2 :][:4])
    grouped = replace(graph, supernodes=(Supernode("some", members),))
    before, after = attribution_figure(graph), attribution_figure(grouped)
    marks = [mark for mark in after.marks if mark.group == 0]
    assert sum(str(member) in mark.tip for mark in marks for member in members) == len(members)
    assert len(after.marks) == len(before.marks) - len(members) + len(marks)
    top = max(node.layer or 0 for node in members)
    inside = {str(node) for node in members}
    leave = [arrow.target for arrow in before.arrows if str(arrow.source) in inside and str(arrow.target) not in inside]
    level = {mark.node: mark.level for mark in before.marks}
    if all(level[node] > top for node in leave):
        assert [(mark.level, mark.lines) for mark in marks] == [(top, (f"some ×{len(members)}",))]
    else:
        assert len(marks) == len({node.layer for node in members})
    lead = {str(member): str(mark.node) for mark in marks for member in members if str(member) in mark.tip}
    expected: dict[tuple[str, str], float] = {}
    for (source, target), value in _drawn_values(graph).items():
        ends = lead.get(source, source), lead.get(target, target)
        if ends[0] != ends[1]:
            expected[ends] = expected.get(ends, 0.0) + value
    assert _drawn_values(grouped) == pytest.approx(expected)
    assert ATTRIBUTION_EXPORTERS["svg"](grouped).count(GROUP_COLOURS[0].encode()) > len(marks)
    assert GROUP_COLOURS[0].encode() not in ATTRIBUTION_EXPORTERS["svg"](graph)
    place_figure(after)


def test_the_title_says_the_scores() -> None:
    graph = _whole()
    assert graph.scores is not None
    text = " ".join(ElementTree.fromstring(ATTRIBUTION_EXPORTERS["svg"](graph)).itertext())
    assert f"replacement {graph.scores.replacement:.2f}" in text
    assert f"(strict {graph.scores.completeness_strict:.2f})" in text
    assert f"{len(graph.edges)} of" in text


def test_graphs_without_edges_or_scores_can_be_exported() -> None:
    graph = _whole()
    unknown = np.full(len(graph.nodes), np.nan)
    bare = replace(
        graph, influence=unknown, explained=unknown, edge_scores=np.full(len(graph.edges), np.nan), scores=None
    )
    no_edges = replace(graph, edges=graph.edges[:0], weights=graph.weights[:0], edge_scores=graph.edge_scores[:0])
    for exporter in ATTRIBUTION_EXPORTERS.values():
        assert exporter(bare)
        assert exporter(no_edges)
    assert b"|weight|" in ATTRIBUTION_EXPORTERS["svg"](bare)


def test_graphml_holds_the_graph() -> None:
    graph = rich_graph()
    read = nx.parse_graphml(ATTRIBUTION_EXPORTERS["graphml"](graph).decode())
    edges = {f"{source}->{target}": data["weight"] for source, target, data in read.edges(data=True)}
    assert edges == dict(zip(graph.edge_names, graph.weights.tolist()))
    assert list(read.nodes) == [str(node) for node in graph.nodes]
    second = [node for node in graph.nodes if node.kind == "feature"][1]
    assert read.nodes[str(second)]["label"] == "capital cities"


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's dot program")
def test_graphviz_draws_the_source() -> None:
    graph = rich_graph()
    content = subprocess.run(
        ["dot", "-Tsvg"], input=ATTRIBUTION_EXPORTERS["dot"](graph), capture_output=True, check=True, timeout=60
    ).stdout
    groups = [element.get("class") for element in ElementTree.fromstring(content).iter(f"{SVG}g")]
    assert groups.count("node") == len(graph.nodes)
    assert groups.count("edge") == len(graph.edges)


def test_a_contrast_says_what_one_side_alone_has() -> None:
    graph = _contrast()
    content = TASK_GRAPH_EXPORTERS["svg"](graph)
    text = " ".join(ElementTree.fromstring(content).itertext())
    assert "2 pairs of prompts" in text
    assert "more positive on clean" in text
    assert "corrupt only" in text
    edges = _tips(content, "->")
    place = int(np.argmax(np.abs(graph.shares[0] - graph.shares[1])))
    assert graph.edge_names[place] in edges
