"""Hostile texts that stand in evidence and labels: rules say the same with and without them, and drawings hold them as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unicodedata import category

import pytest

from graphs.evidence import Evidence, Neighbour, TokenEffect
from graphs.evidence_json import evidence_from_json, evidence_to_json, labels_from_json, labels_to_json
from graphs.exporters import ATTRIBUTION_EXPORTERS, EXPORTERS, TASK_GRAPH_EXPORTERS
from graphs.label import LONGEST, Label
from graphs.node import NodeId
from labelers.rule_labeler import RuleLabeler
from pipelines.label_summary import label_summary
from tests.graphs.test_named import circuit_view, task_graph, traced_graph
from tests.labelers.hostile_texts import HOSTILE_TEXTS, OBEYED
from tests.labelers.test_rules import FEATURES, feature

TEXTS = tuple(HOSTILE_TEXTS.values())


def surrounded(evidence: Evidence) -> Evidence:
    """The same evidence with every hostile text in front of every window, as tokens at which nothing fires, and in every field
    that says nothing of when the node is active."""
    silent = (0.0,) * len(TEXTS)
    contexts = tuple(
        replace(c, tokens=(*TEXTS, *c.tokens), activations=(*silent, *c.activations)) for c in evidence.contexts
    )
    examples = tuple(
        replace(one, tokens=(*TEXTS, *one.tokens), places=tuple(place + len(TEXTS) for place in one.places))
        for one in evidence.examples
    )
    neighbours = tuple(Neighbour(NodeId.parse(f"m{n}"), 1.0, text) for n, text in enumerate(TEXTS))
    return replace(
        evidence, model=TEXTS[5], contexts=contexts, examples=examples, inputs=neighbours, outputs=neighbours
    )


@pytest.mark.parametrize("name", ["token", "class", "before", "either", "both"])
def test_rules_say_the_same_whatever_stands_beside(name: str) -> None:
    fires, words, _ = FEATURES[name]
    others = tuple(Neighbour(NodeId.parse(f"m{n}"), 1.0, "calm") for n in range(len(TEXTS)))
    evidence = replace(feature(fires, words, more=20), inputs=others, outputs=others)
    calm, beset = (RuleLabeler().label(item) for item in (evidence, surrounded(evidence)))
    assert beset == calm and not calm.abstain
    assert OBEYED not in json.dumps(calm.text + calm.description)


def test_rules_say_the_same_where_effects_are_hostile() -> None:
    """Tokens of projections are read for `say "x"` alone: as text, never as an order."""
    fires, words, _ = FEATURES["token"]
    evidence = feature(fires, words)
    effects = tuple(TokenEffect(text, 9.0) for text in TEXTS)
    beset = replace(evidence, promotes=effects, suppresses=effects, logit_attribution=effects)
    assert RuleLabeler().label(beset).rule == RuleLabeler().label(evidence).rule


@pytest.mark.parametrize("text", TEXTS, ids=list(HOSTILE_TEXTS))
def test_labels_and_evidence_keep_the_text_and_lines_hold_it_harmless(text: str) -> None:
    node = NodeId("feature", 0, 3)
    evidence = replace(feature(*FEATURES["token"][:2], node=node), model=text, promotes=(TokenEffect(text, 1.0),))
    assert evidence_from_json(evidence_to_json(evidence)) == _paired(evidence, text)
    label = _label(node, text)
    content = labels_to_json([label], {"failures": {"m0": text}})
    assert labels_from_json(content).labels[node].description == _paired_text(text) and content.isascii()
    told = label_summary({node: label}, {node: text}, {"requests": 1.0})
    assert all(sign.isprintable() for sign in told.replace("\n", "")) and len(told.splitlines()) == 6


def _label(node: NodeId, text: str) -> Label:
    return Label(
        node, " ".join(text.split()[:LONGEST]), "detects", "m", description=text, rule=text, counter_evidence=text
    )


def _paired_text(text: str) -> str:
    """As JSON gives it back: two half signs that make one are one."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _paired(evidence: Evidence, text: str) -> Evidence:
    return replace(evidence, model=_paired_text(text), promotes=(TokenEffect(_paired_text(text), 1.0),))


MAKE: dict[str, Callable[[], Any]] = {"circuit": circuit_view, "graph": traced_graph, "task": task_graph}
TABLES: dict[str, Any] = {"circuit": EXPORTERS, "graph": ATTRIBUTION_EXPORTERS, "task": TASK_GRAPH_EXPORTERS}


def exported(table: str, name: str, texts: Sequence[str]) -> bytes:
    """One of each kind of graph in one format, with these texts as its title and wherever a label has text: each of them in
    a node's label where there are no more texts than nodes."""
    graph = MAKE[table]()
    nodes = graph.circuit.topology.sources if table == "circuit" else graph.nodes
    places = list(dict.fromkeys(node.at(None) for node in nodes if node.kind in ("head", "mlp", "feature", "error")))
    named = {str(node): _label(node, texts[place % len(texts)]) for place, node in enumerate(places)}
    labels = {name: label.text for name, label in named.items()}
    return TABLES[table][name](replace(graph, named=named, labels=labels, title=texts[0]))


def batches() -> Iterator[Sequence[str]]:
    """All hostile texts, a few at a time."""
    yield from (TEXTS[start : start + 7] for start in range(0, len(TEXTS), 7))


@pytest.mark.parametrize(("table", "name"), [(t, n) for t in TABLES for n in ("svg", "graphml") if n in TABLES[t]])
def test_in_xml_they_are_text(table: str, name: str) -> None:
    wanted = _forms(exported(table, name, ["calm", "a calm text of many calm words " * 9]))
    for texts in batches():
        content = exported(table, name, texts)
        assert not re.search(rb"<!(?:DOCTYPE|ENTITY)|<\?(?!xml )|<!\[CDATA", content)
        assert not [sign for sign in content.decode() if category(sign) in ("Cf", "Cs") or sign in "\u2028\u2029\x85"]
        assert _forms(content) <= wanted and OBEYED in "".join(ElementTree.fromstring(content).itertext())


def _forms(content: bytes) -> set[tuple[str, ...]]:
    """Which elements there are, with the names of their attributes."""
    return {(element.tag, *sorted(element.attrib)) for element in ElementTree.fromstring(content).iter()}


@pytest.mark.parametrize("table", ["circuit", "graph"])
def test_in_dot_they_are_strings(table: str) -> None:
    shape = _bare(exported(table, "dot", ["calm"]))
    for texts in batches():
        content = exported(table, "dot", texts)
        assert _bare(content) == shape
        if shutil.which("dot"):
            done = subprocess.run(["dot", "-Tplain"], input=content, capture_output=True, timeout=60, check=False)
            assert done.returncode == 0 and not done.stderr


def _bare(dot: bytes) -> str:
    """DOT source without its strings and the text of its HTML labels."""
    told = re.sub(r"(<FONT[^<>]*>)(?:[^<>]|<BR/>)*(</FONT>)", r"\1\2", dot.decode())
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', told, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("table", "name"), [("circuit", "json"), ("graph", "json"), ("task", "json"), ("graph", "neuronpedia")]
)
def test_in_json_they_are_strings(table: str, name: str) -> None:
    calm = _shape(json.loads(exported(table, name, ["calm"])))
    for texts in batches():
        content = exported(table, name, texts)
        assert _shape(json.loads(content)) == calm and OBEYED in content.decode()


def _shape(value: Any) -> Any:
    """Keys and types of JSON data."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    return [_shape(inner) for inner in value] if isinstance(value, list) else type(value).__name__
