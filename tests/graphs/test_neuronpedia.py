"""Neuronpedia's graph format: valid against its schema, read back equal, ids as documented, other programs' files."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphs.attribution_json import export_json
from graphs.exporters import neuronpedia
from graphs.exporters.neuronpedia import cantor, export_neuronpedia, names_of, read_neuronpedia, uncantor
from graphs.influence import prune
from graphs.json_fields import BadGraphFile
from graphs.node import NodeId
from graphs.pruned import Supernode
from tests.graphs.random_attribution import random_attribution
from tests.graphs.test_attribution_files import rich_graph

TARGETS = ["logits", "difference", "features"]


@pytest.mark.parametrize("targets", TARGETS)
def test_a_file_is_valid_against_the_published_schema(shared: Path, targets: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((shared / "schemas" / "neuronpedia-graph-schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    data = json.loads(export_neuronpedia(rich_graph(targets), created_ms=1_700_000_000_000))
    jsonschema.Draft7Validator(schema).validate(data)
    del data["nodes"][0]["clerp"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(data)


@pytest.mark.parametrize("targets", TARGETS)
def test_a_file_is_read_back_equal(targets: str) -> None:
    graph = rich_graph(targets)
    again = read_neuronpedia(export_neuronpedia(graph))
    assert again.same_as(graph)
    assert export_json(again) == export_json(graph)


def test_ids_are_as_documented_and_differ() -> None:
    layers, width = 6, 9
    cases = {
        "f0.1@1": ("0_1_1", 2, "0", "cross layer transcoder", "0_1-0"),
        "f3.17@4": ("3_17_4", cantor(3, 17), "3", "cross layer transcoder", "3_17-0"),
        "e0@1": ("0_-1_1", -1, "0", "mlp reconstruction error", "0_-1-1"),
        "a2.h3@5": ("2_h3_5", None, "2", "attention head", "2_h3-5"),
        "t42@2": ("E_42_2", 2, "E", "embedding", "E_42-2"),
        "logit42@8": ("7_42_8", 42, "7", "logit", "L_42-8"),
        "logit42-logit5@8": ("7_42-5_8", 42, "7", "logit", "L_42-5-8"),
        "logit42": ("7_42_8", 42, "7", "logit", "L_42-8"),
    }
    for name, expected in cases.items():
        assert tuple(names_of(NodeId.parse(name), layers, width)) == expected
    with pytest.raises(ValueError, match="b1@0"):
        names_of(NodeId.parse("b1@0"), layers, width)
    data = json.loads(export_neuronpedia(rich_graph()))
    ids = [node["node_id"] for node in data["nodes"]]
    assert len(set(ids)) == len(ids)
    assert {end for link in data["links"] for end in (link["source"], link["target"])} <= set(ids)


def test_cantor_pairing_is_a_bijection() -> None:
    numbers = {cantor(layer, index): (layer, index) for layer in range(40) for index in range(40)}
    assert len(numbers) == 1600
    assert all(uncantor(number) == pair for number, pair in numbers.items())
    assert uncantor(cantor(31, 2**40)) == (31, 2**40)


def test_labels_supernodes_and_outputs_are_in_the_file() -> None:
    graph = rich_graph()
    graph = replace(graph, pinned=(), supernodes=(Supernode("places", graph.supernodes[0].nodes),))
    data = json.loads(export_neuronpedia(graph, slug="mine", scan="gemma-2-2b"))
    by_id = {node["node_id"]: node for node in data["nodes"]}
    for node in graph.nodes:
        entry = by_id[names_of(node, graph.layers, len(graph.tokens))[0]]
        if node.kind == "feature":
            assert entry["clerp"] == graph.label(node)
            assert uncantor(entry["feature"]) == (node.layer, node.index)
        assert (entry["influence"] is None) == (node.kind == "logit")
    assert by_id["5_7_4"]["clerp"] == 'Output " seven" (p=0.500)'
    assert (by_id["5_7_4"]["token_prob"], by_id["5_7_4"]["is_target_logit"]) == (0.5, True)
    assert [node["node_id"] for node in data["nodes"] if node["is_target_logit"]] == ["5_7_4"]
    members = [names_of(node, graph.layers, len(graph.tokens))[0] for node in graph.supernodes[0].nodes]
    assert data["qParams"]["supernodes"] == [["places", *members]]
    assert data["qParams"]["pinnedIds"] == members
    assert (data["metadata"]["slug"], data["metadata"]["scan"]) == ("mine", "gemma-2-2b")
    assert read_neuronpedia(json.dumps(data)).same_as(graph)


def test_a_subgraph_that_was_changed_on_the_website_is_read() -> None:
    graph = rich_graph()
    data = json.loads(export_neuronpedia(graph))
    ids = [node["node_id"] for node in data["nodes"]]
    data["qParams"].update(pinnedIds=[ids[3], "9_9_9"], supernodes=[["new", ids[3], ids[4]]])
    again = read_neuronpedia(json.dumps(data))
    assert again.pinned == (graph.nodes[3],)
    assert again.supernodes == (Supernode("new", graph.nodes[3:5]),)
    assert replace(again, pinned=graph.pinned, supernodes=graph.supernodes).same_as(graph)


@pytest.mark.parametrize("old_error_ids", [False, True])
def test_a_file_of_another_program_is_read(old_error_ids: bool) -> None:
    graph = prune(random_attribution(0))
    graph = replace(graph, labels={str(graph.nodes[0]): "a label"})
    data: dict[str, Any] = json.loads(export_neuronpedia(graph))
    del data["metadata"]["edgewise"]
    renamed = {}
    for node in data["nodes"]:
        del node["edgewise"]
        if old_error_ids and node["feature_type"] == "mlp reconstruction error":
            renamed[node["node_id"]] = node["node_id"] = f"0_{node['layer']}_{node['ctx_idx']}x"
    for link in data["links"]:
        del link["score"]
        link.update({end: renamed.get(link[end], link[end]) for end in ("source", "target")})
    again = read_neuronpedia(json.dumps(data))
    assert again.nodes == graph.nodes
    assert again.edge_names == graph.edge_names
    np.testing.assert_array_equal(again.weights, graph.weights)
    np.testing.assert_array_equal(again.target_weights, graph.target_weights)
    assert np.isnan(again.influence).all()
    known = [node.kind != "logit" for node in graph.nodes]
    np.testing.assert_array_equal(again.cumulative[known], graph.cumulative[known])
    assert (again.tokens, again.token_ids, again.layers) == (graph.tokens, graph.token_ids, graph.layers)
    assert again.texts[7] == " seven"
    assert again.label(graph.nodes[0]) == "a label"
    assert again.node_threshold == 0.8


def test_what_is_wrong_with_a_file_is_said_in_one_line() -> None:
    def broken(change: Any) -> str:
        data = json.loads(export_neuronpedia(rich_graph()))
        change(data)
        return json.dumps(data)

    cases: dict[str, Any] = {
        "'metadata' is missing": lambda d: d.pop("metadata"),
        "no node '1_2_3'": lambda d: d["links"][0].update(source="1_2_3"),
        "it should be": lambda d: d["nodes"][0].update(feature=1),
        "not a label with node ids": lambda d: d["qParams"].update(supernodes=["x"]),
        "'pinnedIds' is 'x', not a list": lambda d: d["qParams"].update(pinnedIds="x"),
        "cannot be read": lambda d: (d["metadata"].pop("edgewise"), d["nodes"][0].update(feature_type="lorsa")),
        "is not a node name": lambda d: (
            d["metadata"].pop("edgewise"),
            d["nodes"][0].update(node_id="x"),
            d["links"].clear(),
        ),
        "'node_id' is missing": lambda d: d["nodes"][0].pop("node_id"),
    }
    for message, change in cases.items():
        with pytest.raises(BadGraphFile) as caught:
            read_neuronpedia(broken(change))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_file_that_the_website_cannot_take_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(neuronpedia, "LARGEST", 1000)
    with caplog.at_level(logging.WARNING):
        export_neuronpedia(rich_graph())
    assert "prune more" in caplog.text
