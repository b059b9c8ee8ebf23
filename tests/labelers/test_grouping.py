"""Groups are what was planted, stay what a hand made them, and survive the disk."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from graphs.json_fields import BadGraphFile
from graphs.label import Label
from graphs.node import EdgeId, NodeId
from graphs.pruned import PrunedGraph, Supernode
from labelers.grouping import (
    GroupSettings,
    check_groups,
    group_graph,
    grouped,
    groups_from_json,
    groups_to_json,
    propose_groups,
    similarity,
)
from labelers.wiring import Wire, wires_of_graph


def node(name: str) -> NodeId:
    """A node by its name."""
    return NodeId.parse(name)


def wire(source: str, target: str, weight: float) -> Wire:
    """An edge between two nodes by name."""
    return Wire(EdgeId(node(source), node(target)), weight)


def planted(rng: random.Random) -> tuple[list[Wire], list[set[str]]]:
    """Three families of features: each family has its own inputs and outputs, with noise on the weights."""
    wires, families = [], []
    for family in range(3):
        members = {f"f{family % 2}.{10 * family + number}@4" for number in range(4)}
        families.append(members)
        for name in sorted(members):
            for other in range(3):
                wires.append(wire(f"t{family + 1}{other}@{other}", name, (other + 1) * rng.uniform(0.9, 1.1)))
                wires.append(wire(name, f"logit{family + 1}{other}", (other - 3) * rng.uniform(0.9, 1.1)))
    return wires, families


def label(name: str, text: str, role: str = "detects") -> Label:
    """A label."""
    return Label(node(name), text, role, "m")  # type: ignore[arg-type]


def test_families_are_found_in_any_order() -> None:
    wires, families = planted(random.Random(0))
    found = propose_groups(wires, {})
    assert [{str(member) for member in group.nodes} for group in found] == sorted(families, key=lambda f: min(f))
    for seed in range(5):
        shuffled = random.Random(seed).sample(wires, len(wires))
        assert propose_groups(shuffled, {}) == found
    assert all(len(group.nodes) == 4 and group.label == "4 features" for group in found)


def test_similarity_is_the_plain_formula() -> None:
    rng = np.random.default_rng(0)
    nodes = [node(f"f1.{number}@2") for number in range(4)]
    inputs, outputs = rng.normal(size=(4, 5)), rng.normal(size=(4, 3))
    wires = [wire(f"f0.{s}@1", str(n), inputs[i, s]) for i, n in enumerate(nodes) for s in range(5)]
    wires += [wire(str(n), f"logit{t}", outputs[i, t]) for i, n in enumerate(nodes[:3]) for t in range(3)]
    vectors = {n.at(None): rng.normal(size=6) for n in nodes[1:]}
    labels = {nodes[0].at(None): label("f1.0", "names of cities"), nodes[1].at(None): label("f1.1", "cities in France")}
    settings = GroupSettings(profile=1.0, directions=2.0, labels=0.5)
    found = similarity(nodes, wires, labels, vectors, settings)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    for i in range(4):
        for j in range(i):
            parts = [cosine(inputs[i], inputs[j])] + ([cosine(outputs[i], outputs[j])] if 3 not in (i, j) else [])
            terms = [(1.0, max(0.0, sum(parts) / len(parts)))]
            if 0 not in (i, j):
                terms.append((2.0, max(0.0, cosine(vectors[nodes[i].at(None)], vectors[nodes[j].at(None)]))))
            if {i, j} == {0, 1}:
                terms.append((0.5, 1 / 3))  # names, cities, France: one of three is shared
            wanted = sum(weight * value for weight, value in terms) / sum(weight for weight, _ in terms)
            assert found[i, j] == pytest.approx(wanted, abs=1e-12) == found[j, i]


def test_directions_and_labels_can_split_what_profiles_join() -> None:
    wires, families = planted(random.Random(1))
    family = sorted(families[0])
    halves = {name: np.eye(2)[place // 2] for place, name in enumerate(family)}
    vectors = {node(name).at(None): vector for name, vector in halves.items()}
    found = propose_groups(wires, {}, vectors)
    members = [{str(member) for member in group.nodes} for group in found]
    assert set(family[:2]) in members and set(family[2:]) in members


def test_groups_are_named_by_their_labels_but_not_by_unclear_ones() -> None:
    wires, families = planted(random.Random(2))
    names = sorted(families[0])
    texts = {names[0]: "cities", names[1]: "cities", names[2]: "towns", names[3]: "cities"}
    labels = {node(name).at(None): label(str(node(name).at(None)), text) for name, text in texts.items()}
    settings = GroupSettings(labels=0.0)
    assert {g.label for g in propose_groups(wires, labels, None, settings) if node(names[0]) in g.nodes} == {"cities"}
    unclear = {key: label(str(key), "no idea", "unclear") for key in labels}
    assert {g.label for g in propose_groups(wires, unclear, None, settings)} == {"4 features"}


def test_kinds_and_positions_stay_apart() -> None:
    targets = [
        wire(name, "logit1", 1.0)
        for name in ("f0.1@2", "f0.2@2", "f0.3@3", "f0.4@3", "a1.h1@3", "a1.h2@3", "e1@3", "e0@3")
    ]
    found = {tuple(map(str, group.nodes)) for group in propose_groups(targets, {})}
    assert found == {("f0.1@2", "f0.2@2"), ("f0.3@3", "f0.4@3"), ("a1.h1@3", "a1.h2@3")}
    wide = propose_groups(targets, {}, None, GroupSettings(across_positions=True))
    assert ("f0.1@2", "f0.2@2", "f0.3@3", "f0.4@3") in {tuple(map(str, group.nodes)) for group in wide}
    assert propose_groups([], {}) == ()


def graph() -> PrunedGraph:
    """A pruned graph with the planted families."""
    wires, _ = planted(random.Random(3))
    nodes = tuple(dict.fromkeys(end for w in wires for end in (w.edge.source, w.edge.target)))
    place = {name: number for number, name in enumerate(nodes)}
    edges = np.array([[place[w.edge.source], place[w.edge.target]] for w in wires], dtype=np.int64)
    weights = np.array([w.weight for w in wires], dtype=np.float32)
    zeros = np.zeros(len(nodes), dtype=np.float32)
    chosen = np.array([place[node("logit10")]])
    return PrunedGraph(
        nodes, edges, weights, weights, zeros, zeros, zeros, zeros, chosen, np.ones(1), (1, 2), ("a", "b"), 2
    )


def test_groups_are_kept_in_the_graph_and_a_hands_groups_stay() -> None:
    whole = group_graph(graph(), {})
    assert len(whole.supernodes) == 3 and len(wires_of_graph(whole)) == len(whole.edges)
    assert group_graph(whole, {}).supernodes == whole.supernodes
    member = whole.supernodes[0].nodes[0]
    other = whole.supernodes[1].nodes[0]
    by_hand = grouped(graph(), [Supernode("mine", (member, other))])
    again = group_graph(by_hand, {}).supernodes
    assert again[0] == Supernode("mine", (member, other))
    assert sorted(len(group.nodes) for group in again[1:]) == [3, 3, 4]
    check_groups(again, graph().nodes)


def test_files_are_edited_by_hand() -> None:
    groups = (Supernode('say "x" \u202e<b>', (node("f0.1@2"), node("f1.2@3"))), Supernode("", (node("a0.h1"),)))
    content = groups_to_json(groups)
    assert groups_from_json(content) == groups and groups_from_json(groups_to_json(())) == ()
    edited = json.loads(content)
    edited["groups"][0]["label"] = "countries"
    assert groups_from_json(json.dumps(edited))[0].label == "countries"
    for change, said in (
        ({"version": 2}, "version"),
        ({"groups": [{"label": "x", "nodes": ["f0.1@2", "f0.1@2"]}]}, "group 0: f0.1@2 is listed twice"),
        ({"groups": [{"label": "x", "nodes": ["f0.1"]}, {"label": "y", "nodes": ["f0.1"]}]}, "f0.1 is listed twice"),
        ({"groups": [{"label": 3, "nodes": ["f0.1"]}]}, "group 0: 'label'"),
        ({"groups": [{"label": "x", "nodes": ["what"]}]}, "'what' is not a node name"),
        ({"groups": [{"label": "x", "nodes": []}]}, "empty"),
    ):
        with pytest.raises(BadGraphFile, match=said):
            groups_from_json(json.dumps(edited | change))
    with pytest.raises(ValueError, match=r"group 0 .*f0\.1@2 is no node of the graph"):
        grouped(graph(), groups)


@pytest.mark.parametrize("bad", [{"threshold": 0.0}, {"threshold": 1.5}, {"labels": -1.0}, {"profile": 0.0}])
def test_settings_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="groups need"):
        GroupSettings(**bad)  # type: ignore[arg-type]
