"""Names from a language model: three passes over a circuit's nodes, each reply checked, rules' names where it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from graphs.escape import shorten
from graphs.evidence import Evidence
from graphs.label import LONGEST, ROLES, Expectation, Label
from graphs.node import NodeId
from labelers.budget import BudgetSpent, cost, likely_tokens
from labelers.endpoint import Endpoint
from labelers.endpoint_faults import RequestFailed
from labelers.labeler import Labeler, Labelling
from labelers.openai_settings import OpenAISettings, Passes
from labelers.prompt import SYSTEM, TASKS, Draft, View, citable, data_block, has_side, shown
from labelers.reply import BadReply, Inquiry, ask_shorter, list_of, one_of, strict_object, text_of
from labelers.reply_cache import ReplyCache
from labelers.shorter import shorter_and_shorter, shown_share

SENT = ("feature", "head", "mlp")
"""Kinds of nodes that are sent. Error nodes, tokens and logits never are: what they are is known."""
_VIEWS: dict[Passes, tuple[View, ...]] = {"three": ("output", "input", "unify"), "one": ("single",)}
_NOTHING = "none"
_CHANGES, _DIRECTIONS = ("ablate", "swap"), ("down", "up", "none", "unknown")
_LONGEST_DESCRIPTION = 600
_TYPICAL_REPLY = 180
"""Tokens of a reply, for forecasts."""


@dataclass(frozen=True)
class Forecast:
    """What a labelling would cost without a cache, if nothing fails."""

    nodes: int
    """Nodes that would be sent."""
    requests: int
    """Requests."""
    prompt_tokens: int
    """Estimate of the tokens sent."""
    reply_tokens: int
    """Estimate of the tokens that come back."""
    usd: float | None
    """Estimate in US dollars; None where prices are not known."""


def label_nodes(
    evidence: Mapping[NodeId, Evidence],
    settings: OpenAISettings,
    *,
    fallback: Labeler,
    names: Mapping[NodeId, str] | None = None,
    progress: bool = True,
) -> Labelling:
    """Names of all nodes. No call from within a running event loop: `await label_nodes_async` there.

    evidence: by node, without positions. fallback: names what is not sent, and what fails. names: what other nodes are
    called (by hand, say), beside the fallback's names. Raises EndpointUnusable, BadCache and ValueError for settings that
    cannot work; what fails for one node is among the failures.
    """
    return asyncio.run(label_nodes_async(evidence, settings, fallback=fallback, names=names, progress=progress))


async def label_nodes_async(
    evidence: Mapping[NodeId, Evidence],
    settings: OpenAISettings,
    *,
    fallback: Labeler,
    names: Mapping[NodeId, str] | None = None,
    progress: bool = True,
) -> Labelling:
    """`label_nodes` for a running event loop."""
    labels, failures = _fallback_labels(evidence, fallback)
    called = {node: label.text for node, label in labels.items()} | dict(names or {})
    cache = None if settings.cache is None else ReplyCache(settings.cache)
    try:
        async with Endpoint(settings, cache) as endpoint:
            run = _Run(endpoint, evidence, called)
            with tqdm(total=len(_plan(evidence, settings)), desc="names", unit="request", disable=not progress) as bar:
                await run.passes(bar)
    finally:
        if cache is not None:
            cache.close()
    labels.update(run.labels)
    failures = {node: reason for node, reason in failures.items() if node not in labels} | run.failures
    failures = {node: failures[node] for node in evidence if node in failures}  # whatever the order of replies
    shortened = {node: run.shortened[node] for node in evidence if node in run.shortened}
    return Labelling(labels, failures, endpoint.usage.as_numbers(), shortened)


def forecast(evidence: Mapping[NodeId, Evidence], settings: OpenAISettings) -> Forecast:
    """What `label_nodes` would cost; nothing is sent and no key is needed."""
    plan = _plan(evidence, settings)
    prompt = 0
    for node, view in plan:
        question = node_question(evidence[node], view, {}, settings.model)
        prompt += likely_tokens((question.system, question.task, data_block(question.data), str(question.schema)))
    reply = _TYPICAL_REPLY * len(plan)
    usd = None if settings.prices is None else cost(settings.prices, prompt, reply)
    return Forecast(len({node for node, _ in plan}), len(plan), prompt, reply, usd)


def node_question(
    evidence: Evidence, view: View, names: Mapping[NodeId, str], model: str, drafts: Sequence[Draft] = ()
) -> Inquiry[Label]:
    """What is asked about a node, and how the reply becomes a label. model: who is asked."""
    cites = citable(evidence)
    schema = strict_object(
        {
            "label": {"type": "string"},
            "role": {"type": "string", "enum": list(ROLES)},
            "description": {"type": "string"},
            "cites": {"type": "array", "items": {"type": "string", "enum": list(cites) or [_NOTHING]}},
            "counter_evidence": {"type": "string"},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "abstain": {"type": "boolean"},
            "expects": strict_object(
                {
                    "change": {"type": "string", "enum": list(_CHANGES)},
                    "direction": {"type": "string", "enum": list(_DIRECTIONS)},
                }
            ),
        }
    )
    data = shown(evidence, view, names, drafts)
    return Inquiry(
        SYSTEM, TASKS[view], data, "node_label", schema, lambda reply: read_label(reply, evidence.node, cites, model)
    )


def read_label(reply: Mapping[str, Any], node: NodeId, cites: Sequence[str], model: str) -> Label:
    """The label that a reply gives. Raises BadReply naming the field that is not as it should be.

    cites: ids that exist. Texts are one line each, without control characters; still hostile.
    """
    text = shorten(text_of(reply, "label"), 10_000)
    abstain, confidence = reply.get("abstain"), reply.get("confidence")
    if not isinstance(abstain, bool):
        raise BadReply("'abstain' is not true or false")
    if len(text.split()) > LONGEST or len(text) > 120:
        raise BadReply(f"'label' has {len(text.split())} words and {len(text)} letters: {LONGEST} words at most")
    if not text and not abstain:
        raise BadReply("'label' is empty")
    if not isinstance(confidence, int | float) or isinstance(confidence, bool) or not 0 <= confidence <= 1:
        raise BadReply("'confidence' is not a number from 0 to 1")
    cited = [name for name in list_of(reply, "cites", str) if name != _NOTHING]
    unknown = [name for name in cited if name not in cites]
    if unknown:
        raise BadReply(f"'cites' names {unknown[0][:40]!r}, which is not among the data's ids")
    return Label(
        node,
        text or "unclear",
        "unclear" if abstain else one_of(reply, "role", ROLES),  # type: ignore[arg-type]
        model,
        description=shorten(text_of(reply, "description"), _LONGEST_DESCRIPTION),
        cites=tuple(dict.fromkeys(cited)),
        counter_evidence=shorten(text_of(reply, "counter_evidence"), _LONGEST_DESCRIPTION),
        confidence=float(confidence),
        abstain=abstain,
        expects=_expectation(reply.get("expects")),
    )


def _expectation(found: Any) -> Expectation | None:
    if not isinstance(found, Mapping):
        raise BadReply("'expects' is not an object")
    change, direction = one_of(found, "change", _CHANGES), one_of(found, "direction", _DIRECTIONS)
    return None if direction == "unknown" else Expectation(change, direction)  # type: ignore[arg-type]


def _fallback_labels(
    evidence: Mapping[NodeId, Evidence], fallback: Labeler
) -> tuple[dict[NodeId, Label], dict[NodeId, str]]:
    labels, failures = {}, {}
    for node, known in evidence.items():
        try:
            labels[node] = fallback.label(known)
        except ValueError as error:
            failures[node] = f"no name by rules either: {error}"
    return labels, failures


def _plan(evidence: Mapping[NodeId, Evidence], settings: OpenAISettings) -> list[tuple[NodeId, View]]:
    """Every question that would be asked."""
    sent = [node for node in evidence if node.kind in SENT]
    return [(node, view) for view in _VIEWS[settings.passes] for node in sent if has_side(evidence[node], view)]


def _stages(nodes: Iterable[NodeId]) -> Iterator[list[NodeId]]:
    """Nodes that do not feed each other together, early ones first: the heads of a layer, then its MLP and features."""
    stages: dict[tuple[int, bool], list[NodeId]] = {}
    for node in nodes:
        stages.setdefault((node.layer or 0, node.kind != "head"), []).append(node)
    for stage in sorted(stages):
        yield stages[stage]


class _Run:
    """One labelling under way."""

    def __init__(self, endpoint: Endpoint, evidence: Mapping[NodeId, Evidence], names: dict[NodeId, str]) -> None:
        self.endpoint, self.evidence, self.names = endpoint, evidence, names
        self.plan = _plan(evidence, endpoint.settings)
        self.drafts: dict[NodeId, list[Draft]] = {}
        self.labels: dict[NodeId, Label] = {}
        self.failures: dict[NodeId, str] = {}
        self.shortened: dict[NodeId, str] = {}

    async def passes(self, bar: Any) -> None:
        """Asks everything: the output side late to early, so that a node sees the names of what it feeds; the input side
        early to late; then all at once with both drafts and the neighbours' names."""
        for view in _VIEWS[self.endpoint.settings.passes]:
            stages = list(_stages(node for node, planned in self.plan if planned == view))
            if view in ("unify", "single"):
                stages = [[node for stage in stages for node in stage]]
            for stage in reversed(stages) if view == "output" else stages:
                found = await self._together(stage, view, bar)
                for node, label in found.items():
                    self._keep(node, view, label)

    async def _together(self, nodes: Sequence[NodeId], view: View, bar: Any) -> dict[NodeId, Label]:
        found: dict[NodeId, Label] = {}

        async def one(node: NodeId) -> None:
            label = await self._ask(node, view)
            bar.update()
            if label is not None:
                found[node] = label

        try:
            async with asyncio.TaskGroup() as group:
                for node in nodes:
                    group.create_task(one(node))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {node: found[node] for node in nodes if node in found}

    async def _ask(self, node: NodeId, view: View) -> Label | None:
        drafts = self.drafts.get(node, ())
        versions = list(shorter_and_shorter(self.evidence[node]))
        model, names = self.endpoint.settings.model, self.names
        try:
            label, place = await ask_shorter(
                self.endpoint, (node_question(version, view, names, model, drafts) for version in versions)
            )
        except (RequestFailed, BudgetSpent) as error:
            if view in ("unify", "single"):
                self.failures[node] = str(error)
            return None
        if place:
            self.shortened[node] = shown_share(versions[0], versions[place])
        return label

    def _keep(self, node: NodeId, view: View, label: Label) -> None:
        if view in ("unify", "single"):
            self.labels[node] = label
            return
        self.drafts.setdefault(node, []).append(Draft(view, label))
        if not label.abstain:
            self.names[node] = label.text
