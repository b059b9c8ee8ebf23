"""`edgewise label`: names for every node of a stored run, from evidence that is collected once and kept beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.clock import Clock
from pipelines.exports import draw_again
from pipelines.fingerprint import hash_file, hash_settings
from pipelines.label_subject import GENERATED, Subject, subject_of
from pipelines.store import EVIDENCE, LABELS, RunConflict, RunStore

if TYPE_CHECKING:
    from graphs.evidence import Evidence
    from graphs.label import Label
    from graphs.node import NodeId
    from labelers.labeler import Labelling
    from labelers.openai_settings import OpenAISettings


@dataclass(frozen=True)
class LabelRequest:
    """How nodes are named."""

    labeler: Literal["rules", "openai"] = "rules"
    """Who names them."""
    corpus: tuple[str, ...] = ()
    """Text files; none: text like the embedded model's own, for other models the task's prompts."""
    documents: int = 2000
    """Documents of generated text, where the corpus is the embedded model's."""
    pairs: int = 64
    """Pairs of the task on which direct and causal effects are measured, at most."""
    openai: OpenAISettings | None = None
    """The endpoint, where a language model names."""


@dataclass(frozen=True)
class Labelled:
    """What naming came to."""

    store: RunStore
    """The run."""
    labels: dict[NodeId, Label]
    """By node, without positions."""
    failures: Mapping[NodeId, str]
    """Nodes that the wanted labeler failed at; they carry the rules' label. Hostile."""
    usage: Mapping[str, float]
    """What it cost."""
    shortened: Mapping[NodeId, str]
    """Nodes of which the language model was shown less than is known, for its context holds no more."""
    written: tuple[Path, ...]
    """Files."""


def label_run(directory: str | Path, request: LabelRequest) -> Labelled:
    """Names the nodes of a run of `edgewise discover` or `edgewise trace`, and draws its pictures again.

    Evidence that was collected with the same text and settings is used again. Raises ValueError in one line for runs
    without a circuit, and for models, texts and endpoints that cannot be used.
    """
    store = RunStore(directory)
    store.load()
    found = label_store(store, request, Clock())
    return replace(found, written=(*found.written, *draw_again(store)))


def dry_run(directory: str | Path, request: LabelRequest) -> str:
    """What naming would cost, in a line. Evidence is collected where there is none yet; nothing is sent."""
    store = RunStore(directory)
    store.load()
    if request.openai is None:
        return "the rules cost nothing"
    from labelers.openai_labeler import forecast

    found = forecast(collect(store, request), request.openai)
    usd = "price unknown" if found.usd is None else f"about ${found.usd:.2f}"
    return (
        f"{found.nodes:,} nodes, {found.requests:,} requests, about {found.prompt_tokens:,} tokens sent and "
        f"{found.reply_tokens:,} received, {usd}"
    )


def label_store(store: RunStore, request: LabelRequest, clock: Clock) -> Labelled:
    """`label_run` for a run that is open, pictures left as they are."""
    with clock.time("evidence"):
        evidence = collect(store, request)
    with clock.time("labels"):
        found = _name(evidence, request)
        facts: dict[str, Any] = {"labeler": request.labeler}
        if found.failures:
            facts["failures"] = {str(node): reason for node, reason in found.failures.items()}
        if found.shortened:
            facts["shortened"] = {str(node): what for node, what in found.shortened.items()}
        if found.usage:
            facts["usage"] = dict(found.usage)
        path = write_labels(store, found.labels, facts)
    store.note(clock.seconds)
    store.finish("labels", None)
    return Labelled(store, found.labels, found.failures, found.usage, found.shortened, (path,))


def collect(store: RunStore, request: LabelRequest) -> dict[NodeId, Evidence]:
    """The evidence of every node of the run: what lies there, if it was collected from the same things, else anew."""
    from discovery.evidence import EvidenceSource, collect_evidence
    from graphs.evidence import Evidence
    from graphs.evidence_json import evidence_to_json

    subject = subject_of(store)
    made_from = _made_from(store, subject, request)
    if store.finished(EVIDENCE) and store.run.get("evidence") == made_from:
        return read_evidence(store)
    model, workload = subject.model, subject.workload(request.pairs)
    source = EvidenceSource(
        model=model,
        documents=subject.documents(request.corpus, request.documents),
        transcoders=subject.transcoders,
        workload=workload,
        task=subject.task_name,
        graph=subject.graph,
        title=subject.model_title,
    )
    store.clear(EVIDENCE)
    identity = hash_settings(made_from)
    result: dict[NodeId, Evidence] = {}
    for item in collect_evidence(source, subject.nodes, store.path(EVIDENCE) / ".state.safetensors", identity):
        result[item.node] = item
    for node in subject.nodes:
        result.setdefault(node, Evidence(node, subject.model_title))
    for node, item in result.items():
        store.write_bytes(f"{EVIDENCE}/{node}.json", evidence_to_json(item))
    store.finish(EVIDENCE, None, evidence=made_from, corpus=[str(Path(name).absolute()) for name in request.corpus])
    return result


def _made_from(store: RunStore, subject: Subject, request: LabelRequest) -> dict[str, Any]:
    """All that evidence depends on."""
    from discovery.evidence_settings import EvidenceSettings

    own = not request.corpus and subject.is_embedded
    return {
        "inputs": store.run.get("inputs"),
        "circuit": hash_file(subject.graph_file),
        "corpus": {Path(name).name: hash_file(Path(name)) for name in request.corpus},
        "generated": {"seed": GENERATED, "documents": request.documents} if own else None,
        "pairs": request.pairs,
        "settings": asdict(EvidenceSettings()),
    }


def read_evidence(store: RunStore) -> dict[NodeId, Evidence]:
    """The evidence that lies in a run. Raises RunConflict where there is none."""
    from graphs.evidence_json import evidence_from_json

    paths = sorted(store.path(EVIDENCE).glob("*.json"))
    if not paths or not store.finished(EVIDENCE):
        raise RunConflict(f"{store.directory} has no evidence yet: run edgewise label {store.directory} first")
    items = [evidence_from_json(path.read_bytes(), str(path)) for path in paths]
    return {item.node: item for item in items}


def read_labels(store: RunStore) -> tuple[dict[NodeId, Label], dict[str, Any]]:
    """The labels of a run and what its file says besides; nothing where there are none."""
    from graphs.evidence_json import labels_from_json

    if not store.finished("labels") or not store.path(LABELS).exists():
        return {}, {}
    found = labels_from_json(store.path(LABELS).read_bytes(), str(store.path(LABELS)))
    return found.labels, found.facts


def write_labels(store: RunStore, labels: Mapping[NodeId, Label], facts: Mapping[str, Any]) -> Path:
    """Writes labels.json, and counts for run.json."""
    from graphs.evidence_json import labels_to_json

    counted = [label for label in labels.values() if is_told(label)]
    tested = [label.expects.passed for label in counted if label.expects and label.expects.passed is not None]
    named = sum(not label.abstain for label in counted)
    store.run["labels"] = {"nodes": len(counted), "named": named, "tested": len(tested), "passed": sum(tested)}
    return store.write_bytes(LABELS, labels_to_json(labels.values(), facts))


def named_labels(store: RunStore) -> dict[str, Label]:
    """What exporters are told: the labels by node name, those of inputs and outputs left out."""
    return {str(node): label for node, label in read_labels(store)[0].items() if is_told(label)}


def is_told(label: Label) -> bool:
    """Whether a label says anything of its node: inputs and outputs, which every graph has, are called by their kind alone."""
    return label.rule != "kind" or label.node.kind == "error"


def label_texts(store: RunStore) -> dict[str, str]:
    """Their texts."""
    return {name: label.text for name, label in named_labels(store).items()}


def _name(evidence: Mapping[NodeId, Evidence], request: LabelRequest) -> Labelling:
    from labelers.labeler import label_all
    from labelers.rule_labeler import RuleLabeler

    if request.labeler == "rules":
        return label_all(RuleLabeler(), evidence.values())
    from labelers.openai_labeler import label_nodes

    assert request.openai is not None
    return label_nodes(evidence, request.openai, fallback=RuleLabeler())
