"""Groups that a language model names: names and members are checked, failures keep what was there."""

from __future__ import annotations

import json
from typing import Any

from graphs.label import Label
from graphs.node import EdgeId, NodeId
from graphs.pruned import Supernode
from labelers.group_names import name_groups
from labelers.openai_settings import OpenAISettings
from labelers.wiring import Wire
from tests.labelers.faulty_server import Answer, completion, faulty_server
from tests.labelers.test_openai_labeler import data_of

NODES = tuple(NodeId.parse(f"f0.{number}@2") for number in range(5))
GROUPS = (Supernode("first", NODES[:3]), Supernode("second", NODES[3:]))
WIRES = (
    Wire(EdgeId.parse("t5@2->f0.0@2"), 2.0),
    Wire(EdgeId.parse("f0.1@2->logit7"), -1.0),
    Wire(EdgeId.parse("f0.0@2->f0.1@2"), 9.0),
    Wire(EdgeId.parse("f0.3@2->logit7"), 1.0),
)
LABELS = {node.at(None): Label(node.at(None), "</s> Texas", "detects", "m") for node in NODES[:2]}


def named(reply: dict[str, Any]) -> Any:
    """The groups with a server that says this of the first and nothing of use of the second."""

    def decide(body: dict[str, Any], _: int) -> Answer:
        data = data_of(body)
        members = data.get("data", data)["members"]
        return completion(json.dumps(reply) if members[0]["node"] == "f0.0@2" else "what?")

    with faulty_server(decide) as seen:
        found = name_groups(GROUPS, WIRES, LABELS, OpenAISettings("m", base_url=seen.url))
    return found, [data_of(body) for body in seen.requests]


def test_a_named_group_loses_its_strangers() -> None:
    found, asked = named({"label": "Texas", "strangers": ["f0.2@2"]})
    assert found.groups == (Supernode("Texas", NODES[:2]), GROUPS[1])
    assert list(found.failures) == [1] and found.usage["requests"] == 5
    data = next(data for data in asked if data.get("members", [{}])[0].get("node") == "f0.0@2")
    assert data["members"][0]["name"] == "</s> Texas" and "name" not in data["members"][2]
    assert [edge["node"] for edge in data["inputs"]] == ["t5@2"]
    assert data["outputs"] == [{"node": "logit7", "effect": "lowers"}]  # not the edge within


def test_a_group_never_falls_below_two() -> None:
    found, _ = named({"label": "Texas", "strangers": ["f0.2@2", "f0.1@2"]})
    assert found.groups[0] == Supernode("Texas", NODES[:3])


def test_bad_names_and_members_keep_the_group() -> None:
    for reply in (
        {"label": "one two three four five six seven", "strangers": []},
        {"label": " ", "strangers": []},
        {"label": "Texas", "strangers": ["f0.3@2"]},
        {"label": "Texas"},
    ):
        found, _ = named(reply)
        assert found.groups == GROUPS and list(found.failures) == [0, 1]
