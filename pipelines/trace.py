"""`edgewise trace`: the attribution graph of one prompt, from transcoders to pictures; resumable, with every check stored."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import ModelConfig, TranscodersConfig
from pipelines.fingerprint import edgewise_version, hash_settings, versions
from pipelines.model_source import hash_model, load, model_title
from pipelines.settings import ConfigError
from pipelines.store import ADJACENCY, EXPORTS, GRAPH, NODES, VALIDATION, RunStore
from pipelines.transcoders import hash_transcoders, read_transcoders, transcoders_place

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.replacement import LocalReplacement
    from discovery.targets import Target
    from discovery.transcoder import TranscoderSet
    from graphs.attribution import AttributionGraph
    from graphs.node import NodeId
    from graphs.pruned import PrunedGraph


@dataclass(frozen=True)
class TraceSettings:
    """What `edgewise trace` computes."""

    prompt: str
    """A text, or a JSON file of token ids."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The model."""
    transcoders: TranscodersConfig = dataclasses.field(default_factory=TranscodersConfig)
    """Which transcoders, and how they are read; without a name those that come with the embedded model."""
    targets: tuple[str, ...] = ()
    """What to explain, as `discovery.targets.parse_targets` reads it; empty = the file's targets, else likely tokens."""
    keep: float = 0.999
    """Share of each row's absolute sum that is stored."""
    max_features: int | None = None
    """With more active features than these, the most influential ones; None = all."""
    bias_nodes: bool = False
    """Whether the constants are nodes."""
    fixed_prefix: int = 1
    """Number of first positions without features and errors."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a text starts with a special token."""
    node_threshold: float = 0.8
    """Share of the influence that nodes are pruned to."""
    edge_threshold: float = 0.98
    """Share of the edge scores that edges are pruned to."""
    validate: int = 20
    """So many of the strongest features, and twice as many edges, are checked by interventions; 0 = none."""
    split_heads: bool = True
    """Whether the edges that are left are split by the heads that they run through."""
    explain_attention: int = 3
    """Of so many heads that carry most, why they attend where the strongest edge through them comes from; 0 = none."""

    def __post_init__(self) -> None:
        for name in ("keep", "node_threshold", "edge_threshold"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: a share, above 0 and up to 1")
        for name, least in (("fixed_prefix", 0), ("validate", 0), ("explain_attention", 0), ("max_features", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: a whole number from {least} on")


def trace(
    settings: TraceSettings, out: str | None, formats: Sequence[str], overwrite: bool = False
) -> tuple[RunStore, PrunedGraph]:
    """Traces a prompt into a run directory, or goes on where a stopped run ended; gives the store and the pruned graph.

    Raises ValueError in one line for settings, files and models that cannot be used; finished steps stay on disk.
    """
    check_formats(formats)
    tracer = _Tracer(settings, out, overwrite)
    graph = tracer.attribution()
    pruned = tracer.pruned(graph)
    tracer.store.write_bytes(GRAPH, _export(pruned, "json"))
    export_graph(tracer.store, pruned, formats)
    tracer.finish()
    return tracer.store, pruned


def check_formats(formats: Sequence[str]) -> None:
    """Raises ConfigError naming a format of attribution graphs that does not exist."""
    from graphs.exporters import ATTRIBUTION_EXPORTERS

    for name in formats:
        if name not in ATTRIBUTION_EXPORTERS:
            raise ConfigError(
                f"there is no exporter {name!r} of traced graphs (exporters: {', '.join(ATTRIBUTION_EXPORTERS)})"
            )


def export_graph(store: RunStore, graph: PrunedGraph, formats: Sequence[str]) -> list[Path]:
    """Writes a pruned graph in some formats into the run's folder of exports."""
    from graphs.exporters import ATTRIBUTION_EXPORTERS
    from pipelines.label import label_texts, named_labels

    check_formats(formats)
    graph = dataclasses.replace(graph, labels={**label_texts(store), **graph.labels}, named=named_labels(store))
    return [
        store.write_bytes(f"{EXPORTS}/graph{ATTRIBUTION_EXPORTERS[name].suffix}", _export(graph, name))
        for name in formats
    ]


def export_traced(store: RunStore, formats: Sequence[str]) -> list[Path]:
    """Writes the stored graph of a traced prompt in other formats."""
    from graphs.attribution_json import read_graph
    from pipelines.story import with_groups

    return export_graph(store, with_groups(store, read_graph(store.path(GRAPH).read_bytes())), formats)


def _export(graph: PrunedGraph, name: str) -> bytes:
    from graphs.exporters import ATTRIBUTION_EXPORTERS

    return ATTRIBUTION_EXPORTERS[name](graph)


class _Tracer:
    """One run of `edgewise trace`: loads what is needed when it is needed."""

    def __init__(self, settings: TraceSettings, out: str | None, overwrite: bool) -> None:
        self.settings = settings
        self.clock = Clock()
        described = {"command": "trace", **dataclasses.asdict(settings)}
        self.place = transcoders_place(settings.transcoders.name, settings.model)
        if is_token_file(settings.prompt):
            described["prompt"] = {
                "file": settings.prompt,
                "content": Path(settings.prompt).read_text(encoding="utf-8"),
            }
        inputs = {
            "model": hash_model(settings.model),
            "transcoders": hash_transcoders(self.place),
        }
        self.store = RunStore(out or default_directory(settings, described))
        self.store.open({"edgewise": edgewise_version(), "config": described, "inputs": inputs}, "", overwrite)

    @cached_property
    def model(self) -> ComponentModel:
        with self.clock.time("model"):
            return load(self.settings.model)

    @cached_property
    def transcoders(self) -> TranscoderSet:
        with self.clock.time("transcoders"):
            return read_transcoders(self.place, self.settings.transcoders)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        from discovery.single_prompt import prompt_or_file

        tokens = tuple(prompt_or_file(self.settings.prompt, self.model.tokenizer, self.settings.bos))
        check_tokens(tokens, self.model)
        return tokens

    @cached_property
    def replacement(self) -> LocalReplacement:
        from discovery.replacement import LocalReplacement

        model, transcoders, tokens = self.model, self.transcoders, self.tokens
        with self.clock.time("replacement"):
            return LocalReplacement(model, transcoders, tokens, fixed_prefix=self.settings.fixed_prefix)

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        from discovery.single_prompt import read_token_file
        from discovery.targets import likely_targets, parse_targets

        texts = self.settings.targets
        if not texts and is_token_file(self.settings.prompt):
            numbers = read_token_file(self.settings.prompt).get("targets", [])
            if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
                raise ConfigError(f'{self.settings.prompt}: "targets" must be a list of vocabulary ids')
            texts = tuple(f"logit({number})" for number in numbers)
        if texts:
            return parse_targets(self.model, self.replacement.frozen, texts)
        return likely_targets(self.model, self.replacement.frozen)

    def attribution(self) -> AttributionGraph:
        """The whole graph: computed and stored, or read back."""
        from discovery.attribution import attribution_graph
        from discovery.closure import check_closure
        from discovery.token_text import token_texts
        from graphs.adjacency import nodes_json, read_adjacency, write_adjacency

        if self.store.finished("attribution"):
            with self.store.path(ADJACENCY).open("rb") as file:
                return read_adjacency(self.store.path(NODES).read_bytes(), file)
        targets = self.targets
        with self.clock.time("closure"):
            closure = check_closure(self.replacement, targets)
        facts = {
            "model": model_title(self.settings.model),
            "transcoders": self.transcoders.name if self.settings.transcoders.name else "the embedded model's",
            "closure": closure,
            "active_features": len(self.replacement.features),
            "fixed_prefix": self.settings.fixed_prefix,
        }
        with self.clock.time("attribution"):
            graph = attribution_graph(
                self.replacement,
                targets,
                share=self.settings.keep,
                max_features=self.settings.max_features,
                bias_nodes=self.settings.bias_nodes,
                tokens=token_texts(self.tokens, self.model.tokenizer),
                facts=facts,
            )
        with self.clock.time("write"):
            self.store.write_bytes(NODES, nodes_json(graph))
            self.store.write_stream(ADJACENCY, lambda file: write_adjacency(graph, file))
        self.store.note(self.clock.seconds, versions=versions())
        self.store.finish("attribution", None)
        return graph

    def _validation(self, graph: AttributionGraph) -> dict[str, Any] | None:
        from discovery.graph_validation import validate_graph

        if not self.settings.validate:
            return None
        if not self.store.finished("validation"):
            count = self.settings.validate
            with self.clock.time("validation"):
                found = validate_graph(self.model, self.transcoders, graph, edges=2 * count, features=count)
            self.store.write_json(VALIDATION, found.to_json())
            self.store.finish("validation", self.clock.seconds["validation"])
        return self.store.read_json(VALIDATION)

    def pruned(self, graph: AttributionGraph) -> PrunedGraph:
        """What is left after pruning, with its validation and its edges split by heads."""
        from graphs.influence import prune

        validation = self._validation(graph)
        with self.clock.time("prune"):
            pruned = prune(graph, self.settings.node_threshold, self.settings.edge_threshold)
        facts = dict(pruned.facts) | ({} if validation is None else {"validation": validation})
        if not self.settings.split_heads:
            return dataclasses.replace(pruned, facts=facts)
        from discovery.head_split import split_graph

        with self.clock.time("heads"):
            splits = split_graph(self.replacement, self.targets, pruned)
            flow = splits.head_flow()
            facts["head_flow"] = {str(head): value for head, value in flow.items()}
            pruned = dataclasses.replace(pruned, through=splits.through())
            facts["attention"] = self._explain(pruned, list(flow)[: self.settings.explain_attention])
        return dataclasses.replace(pruned, facts=facts)

    def _explain(self, graph: PrunedGraph, heads: Sequence[NodeId]) -> list[dict[str, Any]]:
        """Why the heads look from the target of the strongest edge through them to its source."""
        from discovery.qk_attribution import qk_attribution

        found = []
        for head in heads:
            carried = {place: abs(parts.get(str(head), 0.0)) for place, parts in graph.through.items()}
            best = max(carried, key=lambda place: carried[place])
            source, target = (graph.nodes[place].position for place in graph.edges[best].tolist())
            if head.layer is None or head.index is None or not isinstance(source, int) or not isinstance(target, int):
                continue
            terms = qk_attribution(self.replacement, head.layer, head.index, query=target, key=source, contrast=True)
            found.append({"edge": graph.edge_names[best], **terms.to_json()})
        return found

    def finish(self) -> None:
        """Notes what it took."""
        self.store.note(self.clock.seconds, peak_memory_bytes=peak_memory_bytes())
        self.store.finish("graph", None)


def is_token_file(prompt: str) -> bool:
    """Whether what stands for the prompt is a file of token ids."""
    return prompt.endswith(".json") and Path(prompt).is_file()


def check_tokens(tokens: Sequence[int], model: ComponentModel) -> None:
    """Raises ConfigError for tokens that the model does not have, and for more than it has positions."""
    from discovery.batches import model_limits

    longest, vocabulary = model_limits(model.config)
    if vocabulary is not None and max(tokens) >= vocabulary:
        raise ConfigError(f"the prompt's token {max(tokens)} is beyond the model's vocabulary of {vocabulary}")
    if longest is not None and len(tokens) > longest:
        raise ConfigError(f"the prompt has {len(tokens)} tokens; the model takes {longest}")


def default_directory(settings: TraceSettings, described: Any) -> Path:
    """runs/trace-<first words of the prompt>-<hash of the settings>."""
    words = re.sub(
        r"[^A-Za-z0-9]+", "-", Path(settings.prompt).stem if settings.prompt.endswith(".json") else settings.prompt
    )
    return Path("runs") / f"trace-{words.strip('-')[:40].strip('-') or 'prompt'}-{hash_settings(described)}"
