"""`edgewise story`: groups of nodes that do one thing, and the circuit told in sentences that cite its edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graphs.label import LONGEST
from pipelines.exports import draw_again
from pipelines.label import read_labels
from pipelines.label_subject import Traced, TracedTask, subject_of
from pipelines.store import GROUPS, STORY, RunStore

if TYPE_CHECKING:
    import numpy as np

    from graphs.label import Label
    from graphs.node import NodeId
    from graphs.pruned import PrunedGraph, Supernode
    from graphs.task_graph import TaskGraph
    from labelers.group_names import NamedGroups
    from labelers.narrative import Narrative
    from labelers.openai_settings import OpenAISettings
    from labelers.wiring import Wire


@dataclass(frozen=True)
class StoryRequest:
    """How a circuit is told."""

    teller: Literal["rules", "openai"] = "rules"
    """Who tells it, and names the groups."""
    edges: int = 60
    """Strongest edges that may be told of; of the rules' story 12 at most."""
    group: bool = True
    """Whether to group a traced graph's nodes where there is no groups.json yet."""
    regroup: bool = False
    """Whether to group anew where there is one; what a hand has changed is then lost."""
    threshold: float = 0.6
    """How alike nodes of a group must be, from 0 to 1."""
    across_positions: bool = False
    """Whether nodes at different positions may be one group."""
    openai: OpenAISettings | None = None
    """The endpoint, where a language model tells."""


@dataclass(frozen=True)
class Story:
    """What was told."""

    narrative: Narrative
    """The sentences, and those that were dropped."""
    groups: tuple[Supernode, ...]
    """The groups; none for circuits of heads and MLPs."""
    failures: Mapping[int, str]
    """Groups that the language model could not name, by place; hostile."""
    refused: str
    """Why the language model has told no story, so that the rules have; empty where it has, or was not asked. Hostile."""
    usage: Mapping[str, float]
    """What names and story cost."""
    written: tuple[Path, ...]
    """Files."""


def tell(directory: str | Path, request: StoryRequest) -> Story:
    """Groups a traced graph's nodes, tells the circuit, writes groups.json and story.json, and draws the pictures again.

    A groups.json that lies there is kept, whatever a hand has made of it. Raises ValueError in one line for runs without a
    circuit, groups.json that does not fit it, and endpoints that cannot be used.
    """
    from labelers.group_names import NamedGroups
    from labelers.narrative import narrative_json

    store = RunStore(directory)
    store.load()
    subject, labels = subject_of(store), read_labels(store)[0]
    named = NamedGroups(())
    written: list[Path] = []
    if isinstance(subject, Traced):
        named, path = _groups(store, subject, labels, request)
        written += [path] if path else []
        title = subject.graph.heading
        labels = {**_texts(subject.graph), **labels}
    else:
        title = subject.task_name
        labels = {**(_texts(subject.graph) if isinstance(subject, TracedTask) else {}), **labels}
    narrative, refused = _narrative(_wires(subject.graph), labels, _after(request, named.usage), title)
    usage = {key: named.usage.get(key, 0) + narrative.usage.get(key, 0) for key in {**named.usage, **narrative.usage}}
    facts = {"usage": usage} | ({"refused": refused} if refused else {})
    written.append(store.write_json(STORY, {**narrative_json(narrative), **facts}))
    return Story(narrative, named.groups, named.failures, refused, usage, (*written, *draw_again(store)))


def _after(request: StoryRequest, usage: Mapping[str, float]) -> StoryRequest:
    """The request where so much has been spent: the caps hold for names and story together."""
    if request.openai is None:
        return request
    spent = (int(usage.get("tokens_in", 0)), int(usage.get("tokens_out", 0)))
    return replace(request, openai=replace(request.openai, spent=spent))


def _texts(graph: PrunedGraph | TaskGraph) -> dict[NodeId, Label]:
    """What tokens and logits are called: their texts, as labels of their own."""
    from graphs.escape import visible_token
    from graphs.label import Label

    found: dict[NodeId, Label] = {}
    for node in graph.nodes:
        text = graph.label(node) if node.kind in ("token", "logit", "difference") else ""
        if text and len(text.split()) <= LONGEST:
            role = "detects" if node.kind == "token" else "promotes"
            found[node.at(None)] = Label(node.at(None), f'"{visible_token(text, 40)}"', role, "rules")
    return found


def with_groups(store: RunStore, graph: PrunedGraph) -> PrunedGraph:
    """The graph with the groups that lie beside it. Raises ValueError where they do not fit it."""
    if not store.path(GROUPS).exists():
        return graph
    from labelers.grouping import grouped

    return grouped(graph, _stored(store))


def _stored(store: RunStore) -> tuple[Supernode, ...]:
    from labelers.grouping import groups_from_json

    try:
        return groups_from_json(store.path(GROUPS).read_bytes())
    except ValueError as error:
        raise ValueError(f"{store.path(GROUPS)}: {error}") from None


def _groups(
    store: RunStore, subject: Traced, labels: Mapping[NodeId, Label], request: StoryRequest
) -> tuple[NamedGroups, Path | None]:
    """The groups that lie there, or new ones, and the file if it was written."""
    from labelers.group_names import NamedGroups, name_groups
    from labelers.grouping import GroupSettings, group_graph, groups_to_json

    if not request.regroup and (store.path(GROUPS).exists() or not request.group):
        return NamedGroups(with_groups(store, subject.graph).supernodes), None
    settings = GroupSettings(threshold=request.threshold, across_positions=request.across_positions)
    found = group_graph(subject.graph, labels, _directions(subject), settings)
    named = NamedGroups(found.supernodes)
    if request.openai is not None and named.groups:
        named = name_groups(named.groups, _wires(found), labels, request.openai)
    return named, store.write_bytes(GROUPS, groups_to_json(named.groups))


def _directions(subject: Traced) -> dict[NodeId, np.ndarray]:
    """What each feature writes, where all dictionaries write one layer."""
    transcoders = subject.transcoders
    if transcoders.cross_layer:
        return {}
    features = dict.fromkeys(node.at(None) for node in subject.graph.nodes if node.kind == "feature")
    found = {}
    for node in features:
        assert node.layer is not None and node.index is not None
        decoder = transcoders.by_layer[node.layer].decoders[node.layer]
        found[node] = decoder[node.index].float().cpu().numpy()
    return found


def _wires(graph: Any) -> tuple[Wire, ...]:
    from graphs.circuit import Circuit
    from labelers.wiring import wires_of_circuit, wires_of_graph

    return wires_of_circuit(graph) if isinstance(graph, Circuit) else wires_of_graph(graph)


def _narrative(
    wires: tuple[Wire, ...], labels: Mapping[NodeId, Label], request: StoryRequest, title: str
) -> tuple[Narrative, str]:
    """The story, and why it is the rules' where a language model was asked for one."""
    from labelers.budget import BudgetSpent
    from labelers.endpoint_faults import RequestFailed
    from labelers.narrative import narrate, plain_narrative

    refused = ""
    if request.openai is not None:
        try:
            return narrate(wires, labels, request.openai, title, request.edges), ""
        except (RequestFailed, BudgetSpent) as error:
            refused = str(error)
    return plain_narrative(wires, labels, min(request.edges, 12)), refused
