"""Evidence of nodes for whoever names them: contexts from a corpus, effects on logits and task, neighbours, attention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed

from discovery.batches import model_limits
from discovery.causal_evidence import causal_effects
from discovery.chosen_contexts import ChosenContexts, documents_of, shares
from discovery.component_model import ComponentModel
from discovery.corpus_files import Document, Window, token_windows
from discovery.corpus_pass import CorpusPass, CorpusState, with_thresholds
from discovery.corpus_plan import CorpusPlan
from discovery.evidence_settings import SPLITS, EvidenceSettings
from discovery.head_evidence import head_evidence
from discovery.methods import METHODS
from discovery.node_meters import FeatureMeter, WriteMeter, meters_of
from discovery.passages import Texts, contexts, examples
from discovery.projections import project, write_directions
from discovery.task_evidence import TaskEvidence, task_evidence
from discovery.transcoder import TranscoderSet
from discovery.workload import Workload
from graphs.circuit import Circuit
from graphs.evidence import CausalEffect, Evidence, HeadEvidence, TokenEffect
from graphs.neighbours import Neighbourhood, neighbourhoods
from graphs.node import NodeId
from graphs.pruned import PrunedGraph
from graphs.task_graph import TaskGraph

_NAMED = ("feature", "head", "mlp", "error")
_TEXTS, _TEXT_LENGTH = 16, 128  # of the corpus, to look at attention patterns on


@dataclass(frozen=True, eq=False)
class EvidenceSource:
    """What evidence is taken from. Only the model and the corpus are needed."""

    model: ComponentModel
    """The untouched model."""
    documents: Sequence[Document]
    """The corpus."""
    transcoders: TranscoderSet | None = None
    """Dictionaries of the features among the nodes."""
    workload: Workload | None = None
    """The task: its pairs and metric."""
    task: str = ""
    """The task's name."""
    graph: Circuit | PrunedGraph | TaskGraph | None = None
    """Where edges come from."""
    labels: Mapping[NodeId, str] | None = None
    """What neighbours are called so far."""
    settings: EvidenceSettings = field(default_factory=EvidenceSettings)
    """Numbers of windows, and the seed."""
    title: str = ""
    """What the evidence calls the model; empty: by the model's own name."""

    @property
    def model_title(self) -> str:
        """What stands in `Evidence.model`."""
        return self.title or self.model.name


def collect_evidence(
    source: EvidenceSource, nodes: Sequence[NodeId], state_file: Path | None = None, identity: str = ""
) -> Iterator[Evidence]:
    """Evidence of every feature, head, MLP and error node, positions aside, one after the other.

    The corpus is read once for all nodes. Under torch.distributed the processes share the reading, and each gives every n-th
    node. state_file: where a reading that was stopped goes on, deleted at the end; identity: of model, transcoders and
    corpus, so that it does so only for the same ones. Raises BadCorpus, BadTranscoder or ValueError naming what does not fit.
    """
    wanted = list(dict.fromkeys(node.at(None) for node in nodes if node.kind in _NAMED))
    around = {} if source.graph is None else neighbourhoods(source.graph, labels=source.labels)
    rank, processes = _place()
    for node in [node for node in wanted if node.kind == "error"][rank::processes]:
        yield Evidence(node, source.model_title, flow_share=_flow_share(around, node))
    meters = meters_of(source.model, source.transcoders, wanted)
    if meters:
        yield from _measured(source, wanted, meters, around, state_file, identity)


def _flow_share(around: Mapping[NodeId, Neighbourhood], node: NodeId) -> float | None:
    return around[node].flow_share if node in around else None


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _measured(
    source: EvidenceSource,
    wanted: Sequence[NodeId],
    meters: Sequence[FeatureMeter | WriteMeter],
    around: Mapping[NodeId, Neighbourhood],
    state_file: Path | None,
    identity: str,
) -> Iterator[Evidence]:
    plan = CorpusPlan.of(corpus_windows(source.model, source.documents, source.settings), source.settings)
    meters = with_thresholds(source.model, meters, plan)
    whole = identity_of(plan, wanted, identity)
    state = CorpusPass(source.model, tuple(meters), plan).run(state_file, whole)
    assert state is not None
    texts, batches = Texts(source.model.tokenizer), () if source.workload is None else source.workload.batches
    rank, processes = _place()
    mine = [node for meter in meters for node in meter.nodes][rank::processes]
    task = task_evidence(source.model, source.transcoders, meters, batches, source.settings, len(source.documents))
    causal: Mapping[NodeId, tuple[CausalEffect, ...]] = {}
    if source.workload is not None:
        causal = causal_effects(source.model, source.transcoders, mine, batches, source.workload.metric, source.task)
    heads = head_evidence(
        source.model, mine, texts, batches=batches, corpus=_some_texts(plan), seed=source.settings.seed
    )
    chosen = ChosenContexts(plan, state)
    build = _Builder(source, plan, state, tuple(meters), chosen, texts, task, causal, heads, around, frozenset(mine))
    for number in range(len(meters)):
        yield from build.meter(number)
    if state_file is not None:
        (state_file if processes == 1 else state_file.with_name(f"{state_file.name}.{rank}")).unlink(missing_ok=True)


def corpus_windows(
    model: ComponentModel, documents: Sequence[Document], settings: EvidenceSettings
) -> tuple[Window, ...]:
    """The corpus as the model reads it. Raises BadCorpus."""
    longest, vocabulary = model_limits(model.config)
    width = min(settings.pass_width, longest or settings.pass_width)
    return token_windows(documents, model.tokenizer, width, vocabulary or 1 << 62)


def identity_of(plan: CorpusPlan, nodes: Sequence[NodeId], identity: str) -> str:
    """A hash of all that a pass over the corpus depends on, beside what `identity` stands for."""
    digest = hashlib.sha256(json.dumps([identity, asdict(plan.settings), list(map(str, nodes))]).encode())
    for window in plan.windows:
        digest.update(torch.tensor([window.document, window.start, window.fixed, *window.tokens]).numpy().tobytes())
    return digest.hexdigest()


def _some_texts(plan: CorpusPlan) -> list[tuple[int, ...]]:
    order = plan.hashes[:, 0].argsort().tolist()[:_TEXTS]
    return [plan.windows[n].tokens[:_TEXT_LENGTH] for n in order]


@dataclass(frozen=True, eq=False)
class _Builder:
    """Puts together what was measured."""

    source: EvidenceSource
    plan: CorpusPlan
    state: CorpusState
    meters: tuple[FeatureMeter | WriteMeter, ...]
    chosen: ChosenContexts
    texts: Texts
    task: TaskEvidence
    causal: Mapping[NodeId, tuple[CausalEffect, ...]]
    heads: Mapping[NodeId, HeadEvidence]
    around: Mapping[NodeId, Neighbourhood]
    mine: frozenset[NodeId]

    def meter(self, number: int) -> Iterator[Evidence]:
        """Evidence of this process's nodes of one meter."""
        meter = self.meters[number]
        groups = [self.state.groups[split][number] for split in SPLITS]
        seen, fired = sum(int(group.seen) for group in groups), sum(group.fired for group in groups)
        tokens, documents = sum(group.tokens for group in groups), documents_of(self.plan)
        contrasts, projected = self.task.contrasts[number], self._projections(number)
        found = self.chosen.of_meter(number, lambda node: contrasts.get(node, {}))
        for place, (node, (passages, unshown, counts)) in enumerate(zip(meter.nodes, found, strict=True)):
            if node not in self.mine:
                continue
            up, down = projected[place] if projected else ((), ())
            peaks, follows, sampled = counts
            yield replace(
                Evidence(node, self.source.model_title),
                contexts=contexts(passages, self.texts),
                examples=examples(unshown, self.texts),
                density=int(tokens[place]) / max(1, seen),  # type: ignore[index]
                windows=int(fired[place]),  # type: ignore[index]
                documents=documents,
                peaks=shares(peaks, sampled, self.texts),
                follows=shares(follows, sampled, self.texts),
                promotes=up,
                suppresses=down,
                causal=self.causal.get(node, ()),
                head=self.heads.get(node),
                **self._on_task(number, place),
                **self._edges(node),
            )

    def _on_task(self, number: int, place: int) -> dict[str, object]:
        effects = self.task.effects[number]
        if not effects.pairs:
            return {}
        strongest = [TokenEffect(self.texts(token), value) for token, value in effects.strongest(place)]
        return {"logit_attribution": tuple(strongest), "answers": effects.answers(place)}

    def _edges(self, node: NodeId) -> dict[str, object]:
        here = self.around.get(node)
        foretold = _foretold(self.source)
        return {} if here is None else {"inputs": here.inputs, "outputs": here.outputs, "foretold": foretold}

    def _projections(self, number: int) -> list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]]:
        """Of a feature's decoder; of what a head or MLP writes where it is active, less what it writes on the average."""
        meter, model = self.meters[number], self.source.model
        if isinstance(meter, FeatureMeter):
            assert self.source.transcoders is not None
            layer = meter.nodes[0].layer or 0
            features = [node.index or 0 for node in meter.nodes]
            directions = write_directions(model, self.source.transcoders, layer, features)
        else:
            groups = [self.state.groups[split][number] for split in SPLITS]
            active, everywhere = sum(group.written for group in groups)  # type: ignore[misc]
            tokens, seen = sum(group.tokens for group in groups), sum(int(group.seen) for group in groups)
            mean = active / tokens.clamp(min=1)[:, None] - everywhere / max(1, seen)  # type: ignore[union-attr]
            directions = meter.to_stream(mean.to(model.dtype))
        return [] if directions is None else project(model, directions, self.texts)


def _foretold(source: EvidenceSource) -> Literal["", "ablate", "swap"]:
    """What happens to a node when the edges that leave it are dropped, where their scores are effects on the metric."""
    graph = source.graph
    if source.workload is None or not isinstance(graph, Circuit) or graph.scores is None:
        return ""
    line = METHODS.get(graph.scores.method)
    if line is None or not line.effects:
        return ""
    return "swap" if source.workload.ablation.kind == "counterfactual" else "ablate"
