"""Exports: the files as they were last looked at (tests/golden), well-formed whatever the texts, true to the circuit.

After a wanted change of a format: EDGEWISE_UPDATE_GOLDEN=1 python -m pytest tests/graphs/test_exporters.py, then look.
"""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import networkx as nx
import numpy as np
import pytest

from graphs.exporters import EXPORTERS
from graphs.exporters.heatmap import HeatmapPanel, colour, heatmap_svg
from graphs.exporters.svg import NEGATIVE, POSITIVE
from graphs.node import EdgeId, NodeId
from graphs.prune import drop_dead_ends, full_circuit, random_circuit, select_greedy
from graphs.scores import EdgeScores
from graphs.topology import transformer_topology
from graphs.view import MOST_DRAWN, CircuitView, ExporterUnavailable
from tests.graphs.hostile_labels import HOSTILE, hostile_label

Scored = Callable[..., EdgeScores]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SVG = "{http://www.w3.org/2000/svg}"
TEXT_FORMATS = ("json", "svg", "dot", "graphml")
EVALUATION: dict[str, float | int | None] = {"faithfulness": 0.871, "low": 0.8, "high": 0.93, "cmd": 0.034, "cpr": None}
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz's dot program")


def _view(scored: Scored, kv_heads: int = 2, edges: int = 24) -> CircuitView:
    topology = transformer_topology(3, 4, kv_heads)
    circuit = select_greedy(scored(topology, 11), edges)
    labels = {"m0": "letters & numbers", "a1.h2": "previous token"}
    return CircuitView(circuit, "tiny <model> · task", labels, EVALUATION, "logit difference")


def _drawn_edges(view: CircuitView) -> dict[str, float | None]:
    return {str(edge): score for edge, score in drop_dead_ends(view.circuit).edges}


def _compare(content: bytes, path: Path) -> None:
    if os.environ.get("EDGEWISE_UPDATE_GOLDEN"):
        path.write_bytes(content)
    assert path.exists(), f"{path.name} is missing: run with EDGEWISE_UPDATE_GOLDEN=1 and look at it"
    assert content.decode("utf-8") == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TEXT_FORMATS)
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["ungrouped", "grouped"])
def test_golden_files(scored: Scored, name: str, kv_heads: int) -> None:
    which = "circuit" if kv_heads == 4 else "circuit_grouped"
    _compare(EXPORTERS[name](_view(scored, kv_heads)), GOLDEN / f"{which}{EXPORTERS[name].suffix}")


def test_golden_heat_map() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4))
    values[1, 2] = np.nan
    tokens = ["<s>", " When", "\n", "日本"]
    panels = [
        HeatmapPanel("residual", values, ["0", "1", "2"], tokens, "layer", "position"),
        HeatmapPanel("heads", values[:, :2] / 2, ["0", "1", "2"], ["0", "1"], "layer", "head"),
    ]
    _compare(heatmap_svg(panels, "tiny & task", "restored logit difference"), GOLDEN / "heatmap.svg")


@pytest.mark.parametrize("name", EXPORTERS)
def test_the_table_names_real_exporters(scored: Scored, name: str) -> None:
    exporter = EXPORTERS[name]
    assert exporter.suffix.startswith(".")
    assert exporter.description
    view = replace(_view(scored, kv_heads=4), d_model=8)
    if exporter.module.endswith("graphviz_image") and shutil.which("dot") is None:
        with pytest.raises(ExporterUnavailable):
            exporter(view)
        return
    content = exporter(view)
    assert content
    assert name in ("png", "pdf") or content == exporter(view)  # the same bytes each time


def _tooltips(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}title")]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_svg_draws_every_edge_by_sign_and_strength(scored: Scored, kv_heads: int) -> None:
    view = _view(scored, kv_heads, 40)
    root = ElementTree.fromstring(EXPORTERS["svg"](view))
    edges = _drawn_edges(view)
    assert len(edges) > 15
    seen: dict[str, tuple[float, float]] = {}
    for group in root.iter(f"{SVG}g"):
        title = group.find(f"{SVG}title")
        if title is None or "->" not in (title.text or ""):
            continue
        name, score = (title.text or "").split("  ")
        line = group.findall(f"{SVG}path")[1]
        positive = edges[name] >= 0  # type: ignore[operator]
        assert line.get("stroke") == (POSITIVE if positive else NEGATIVE)
        assert (line.get("stroke-dasharray") is None) == positive
        assert float(score) == pytest.approx(edges[name], rel=1e-3)
        seen[name] = (abs(float(score)), float(line.get("stroke-width", "0")))
    assert seen.keys() == edges.keys()
    widths = [width for _, width in sorted(seen.values())]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_svg_says_the_numbers_and_draws_on_white(scored: Scored) -> None:
    view = _view(scored)
    root = ElementTree.fromstring(EXPORTERS["svg"](view))
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    whole = " · ".join(texts)
    count, possible = len(_drawn_edges(view)), view.circuit.topology.edge_count
    dropped = view.circuit.edge_count - count
    assert dropped > 0
    for part in (f"{count} of {possible} edges", f"{dropped} dead ends not drawn", "0.87 [0.80, 0.93]", "CMD 0.034"):
        assert part in whole
    assert "logit difference" in whole
    assert view.title in texts
    first = root[1]
    assert root[0].tag == f"{SVG}title"
    assert (first.tag, first.get("fill"), first.get("width")) == (f"{SVG}rect", "#ffffff", "100%")


def test_a_circuit_without_paths_or_scores_can_be_exported() -> None:
    topology = transformer_topology(2, 2)
    nothing = CircuitView(replace(full_circuit(topology), kept=np.zeros_like(topology.possible)))
    unscored = CircuitView(random_circuit(topology, 30, np.random.default_rng(0)))
    for name in TEXT_FORMATS:
        assert EXPORTERS[name](nothing)
        assert EXPORTERS[name](unscored)
    assert "nothing to draw" in EXPORTERS["svg"](nothing).decode()


def test_pictures_of_very_large_circuits_hold_the_strongest_edges(scored: Scored) -> None:
    topology = transformer_topology(8, 8)
    view = CircuitView(select_greedy(scored(topology, 0, ties=False), 3000))
    drawn = {str(edge) for edge, _ in view.drawn.edges}
    assert 0.5 * MOST_DRAWN < len(drawn) <= MOST_DRAWN
    strongest = {str(edge) for edge, _ in drop_dead_ends(view.circuit).edges[:MOST_DRAWN]}
    assert drawn <= strongest
    assert f"only the strongest {len(drawn):,} drawn" in EXPORTERS["svg"](view).decode()
    assert EXPORTERS["json"](view).count(b'"edge":') == 3000


def _hostile_view(scored: Scored) -> CircuitView:
    view = _view(scored)
    scores = view.circuit.scores
    assert scores is not None
    names = [*view.circuit.topology.source_names, "logits", "unknown"]
    circuit = replace(view.circuit, scores=replace(scores, method=HOSTILE))
    named = {name: hostile_label(NodeId.parse(name)) for name in names[:-2]}
    return CircuitView(circuit, HOSTILE, dict.fromkeys(names, HOSTILE), EVALUATION, HOSTILE, named=named)


@pytest.mark.parametrize("name", ["svg", "graphml"])
def test_hostile_texts_stay_text(scored: Scored, name: str) -> None:
    content = EXPORTERS[name](_hostile_view(scored))
    root = ElementTree.fromstring(content)
    tags = {element.tag.rsplit("}", 1)[-1] for element in root.iter()}
    assert not tags & {"script", "b", "foreignObject", "a", "style"}
    assert not [key for element in root.iter() for key in element.attrib if key.startswith("on") or "href" in key]
    assert "\u202e" not in content.decode("utf-8")
    assert "alert" in "".join(root.itertext())


@needs_dot
def test_hostile_texts_do_not_break_graphviz(scored: Scored) -> None:
    view = _hostile_view(scored)
    root = ElementTree.fromstring(EXPORTERS["dot-svg"](view))
    groups = [element.get("class") for element in root.iter(f"{SVG}g")]
    boxes = {str(edge.source) for edge, _ in view.drawn.edges} | {"logits"}
    assert groups.count("edge") >= view.drawn.edge_count
    assert groups.count("node") >= len(boxes)
    assert not list(root.iter(f"{SVG}script"))


@needs_dot
def test_graphviz_draws_png_and_pdf(scored: Scored) -> None:
    assert EXPORTERS["png"](_view(scored)).startswith(b"\x89PNG")
    assert EXPORTERS["pdf"](_view(scored)).startswith(b"%PDF")


def test_a_missing_dot_program_is_said_in_one_line(scored: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ExporterUnavailable, match="dot") as caught:
        EXPORTERS["png"](_view(scored))
    assert "\n" not in str(caught.value)


def test_graphml_holds_the_circuit(scored: Scored) -> None:
    view = _view(scored, kv_heads=4)
    graph = nx.parse_graphml(EXPORTERS["graphml"](view).decode(), force_multigraph=True)
    edges = {data["edge"]: data.get("score") for _, _, data in graph.edges(data=True)}
    assert edges == {str(edge): score for edge, score in view.circuit.edges}
    for source, target, data in graph.edges(data=True):
        edge = EdgeId.parse(data["edge"])
        assert (source, target, data.get("port")) == (str(edge.source), str(edge.target), edge.port)
    assert graph.nodes["m0"]["label"] == "letters & numbers"


def test_networkx_spreads_shared_slots_over_their_heads(scored: Scored) -> None:
    circuit = _view(scored, kv_heads=2).circuit
    graph = circuit.to_networkx()
    expected = sum(
        max(1, len(circuit.topology.feeds[circuit.topology.target_index[edge.slot]])) for edge, _ in circuit.edges
    )
    assert graph.number_of_edges() == expected > circuit.edge_count


def _panel(values: np.ndarray, columns: list[str]) -> HeatmapPanel:
    return HeatmapPanel("p", values, [str(i) for i in range(len(values))], columns)


def test_heat_map_tells_every_value_and_escapes_tokens() -> None:
    values = np.array([[0.0, 1.0, -2.0], [np.nan, 0.5, 2.0]])
    root = ElementTree.fromstring(heatmap_svg([_panel(values, [HOSTILE, " a", "b"])], HOSTILE, HOSTILE))
    tips = [tip for tip in _tooltips(root) if ": " in tip][-6:]
    assert sorted(tip.rsplit(": ")[-1] for tip in tips) == sorted(["+0", "+1", "-2", "+nan", "+0.5", "+2"])
    assert not list(root.iter(f"{SVG}script"))


def test_heat_map_colours_are_centred_at_zero() -> None:
    assert colour(0.0, 3.0) == "#f7f7f7"
    for value in (0.3, 1.0, 3.0):
        red, blue = int(colour(value, 3.0)[1:3], 16), int(colour(value, 3.0)[5:], 16)
        assert red > blue
        red, blue = int(colour(-value, 3.0)[1:3], 16), int(colour(-value, 3.0)[5:], 16)
        assert red < blue
    assert colour(9.0, 3.0) == colour(3.0, 3.0)
    assert colour(float("nan"), 3.0) not in (colour(0.0, 3.0), colour(3.0, 3.0))


def test_heat_map_errors() -> None:
    with pytest.raises(ValueError, match="2 columns"):
        _panel(np.zeros((2, 3)), ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        heatmap_svg([], "t")
    assert heatmap_svg([_panel(np.full((1, 2), np.nan), ["a", "b"])], "all missing")


def test_pictures_say_how_sure_an_edge_is_and_why_to_doubt_the_circuit(scored: Scored) -> None:
    topology = transformer_topology(2, 2)
    circuit = select_greedy(scored(topology), 8)
    shares = np.where(circuit.kept, np.float32(0.5), np.nan).astype(np.float32)
    assert circuit.scores is not None
    scores = replace(circuit.scores, stderr=np.where(topology.possible, np.float32(0.25), np.nan).astype(np.float32))
    circuit = replace(circuit, scores=scores, stability=shares)
    warning = "a <warning> that is " + 60 * "long " + "enough to be cut"
    view = CircuitView(circuit, warnings=(warning, "second"))
    picture = EXPORTERS["svg"](view).decode()
    assert picture.count("± 0.25, selected in 50% of resamples") == view.drawn.edge_count > 0
    assert "a &lt;warning&gt; that" in picture
    assert ">! second<" in picture
    assert picture.count(escape(warning)) == 1  # whole in its tooltip, cut in its line
