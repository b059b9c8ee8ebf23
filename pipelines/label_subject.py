"""What a stored run is about, as far as names need it: nodes, model, transcoders, task, text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock
from pipelines.config import ModelConfig, RunConfig, TranscodersConfig
from pipelines.inputs import Inputs, read_task
from pipelines.model_source import load, model_place, model_title
from pipelines.settings import ConfigError, build, from_file
from pipelines.store import CIRCUIT, CONFIG, CONTRAST, GRAPH, TASK_GRAPH, RunConflict, RunStore
from pipelines.transcoders import read_transcoders, transcoders_place

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.corpus_files import Document
    from discovery.transcoder import TranscoderSet
    from discovery.workload import Workload
    from graphs.circuit import Circuit
    from graphs.node import NodeId
    from graphs.pruned import PrunedGraph
    from graphs.task_graph import TaskGraph

GENERATED = 2**20 + 7
"""Seed of the text that is generated for the embedded model: none that it was trained on in this order."""
_MEASURED = ("feature", "error", "head")


def is_embedded(config: ModelConfig) -> bool:
    """Whether settings mean the embedded model."""
    from discovery.demo import model_directory

    return Path(model_place(config)).resolve() == model_directory().resolve()


def _documents(config: ModelConfig, corpus: Sequence[str], generated: int) -> Sequence[Document] | None:
    """The named files, or text like the embedded model's own; None for another model without files."""
    from discovery.corpus_files import Document, read_corpus

    if corpus:
        return read_corpus(corpus)
    if not is_embedded(config):
        return None
    from discovery.demo.corpus import documents

    texts = islice(documents(GENERATED), generated)
    return [Document(text, f"generated text {number}") for number, text in enumerate(texts, 1)]


def _without_positions(nodes: Sequence[NodeId]) -> tuple[NodeId, ...]:
    return tuple(dict.fromkeys(node.at(None) for node in nodes))


class _OnTask:
    """The model, the transcoders and the task of a run's settings."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        # Nodes are looked at over all positions, on pairs whose prompts can be laid side by side token by token.
        task = dataclasses.replace(config.task, spans="none", misaligned="drop")
        ablation = "mean" if config.ablation == "mean-span" else config.ablation
        plain = dataclasses.replace(config, transcoders=TranscodersConfig(), task=task, ablation=ablation)
        self._inputs = Inputs(plain, read_task(plain), Clock(), alignment="tokens")

    @property
    def is_embedded(self) -> bool:
        """Whether its model is the embedded one."""
        return is_embedded(self.config.model)

    @property
    def model(self) -> ComponentModel:
        """The untouched model."""
        return self._inputs.model

    @property
    def model_title(self) -> str:
        """What the model is called."""
        return model_title(self.config.model)

    @property
    def task_name(self) -> str:
        """The task."""
        return self._inputs.task.name

    def workload(self, pairs: int) -> Workload | None:
        """About so many of the task's pairs, of those that were scored on; None where no prompts are of equal length."""
        from discovery.batches import MisalignedPair

        try:
            return self._inputs.some_of_train(pairs)
        except MisalignedPair:
            return None

    def documents(self, corpus: Sequence[str], generated: int) -> Sequence[Document]:
        """The text that nodes are looked at on; of a model that has none of its own, the task's prompts."""
        from discovery.corpus_files import Document

        found = _documents(self.config.model, corpus, generated)
        if found is not None:
            return found
        pairs = self._inputs.task.pairs
        texts = dict.fromkeys(
            content if isinstance(content, str) else tuple(content)
            for pair in pairs
            for content in (pair.clean, pair.corrupt)
        )
        return [Document(text, f"prompt {number}") for number, text in enumerate(texts, 1)]


class Discovered(_OnTask):
    """A run of `edgewise discover`."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(build(from_file(store.path(CONFIG))))
        self.graph_file = store.path(CIRCUIT)

    @cached_property
    def graph(self) -> Circuit:
        """Where its edges are."""
        from graphs.exporters.circuit_json import read_circuit

        return read_circuit(self.graph_file.read_bytes())

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Its nodes, without positions, each once."""
        rows, columns = self.graph.places
        topology = self.graph.topology
        ends = {topology.sources[row] for row in rows} | {topology.targets[column].node for column in columns}
        return _without_positions(sorted(ends, key=lambda node: (node.layer is None, node.layer or 0, str(node))))

    @cached_property
    def transcoders(self) -> TranscoderSet | None:
        """Where its features come from."""
        wanted = self.config.transcoders
        return None if wanted.name is None else read_transcoders(wanted.name, wanted)


class TracedTask(_OnTask):
    """A run of `edgewise trace` over a task: the graph of its clean prompts, and how clean and corrupt ones differ."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(build(from_file(store.path(CONFIG))))
        self.graph_file = store.path(TASK_GRAPH)
        self._contrast_file = store.path(CONTRAST)

    @cached_property
    def graph(self) -> TaskGraph:
        """Where its edges are: the graph of the clean prompts."""
        from graphs.task_graph_json import read_task_graph

        return read_task_graph(self.graph_file.read_bytes())

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """The nodes of both graphs, without positions, each once."""
        from graphs.task_graph_json import read_task_graph

        both = (*self.graph.nodes, *read_task_graph(self._contrast_file.read_bytes()).nodes)
        return _without_positions([node for node in both if node.kind in _MEASURED])

    @cached_property
    def transcoders(self) -> TranscoderSet:
        """Where its features come from."""
        wanted = self.config.transcoders
        return read_transcoders(transcoders_place(wanted.name, self.config.model), wanted)


class Traced:
    """A run of `edgewise trace` over one prompt."""

    def __init__(self, store: RunStore) -> None:
        stored: dict[str, Any] = store.run["config"]
        self._model_config = ModelConfig(**stored["model"])
        self._transcoders = TranscodersConfig(**stored["transcoders"])
        self.graph_file = store.path(GRAPH)
        self.task_name = ""

    @cached_property
    def graph(self) -> PrunedGraph:
        """Where its edges are."""
        from graphs.attribution_json import read_graph

        return read_graph(self.graph_file.read_bytes())

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        """Its nodes, without positions, each once."""
        return _without_positions([node for node in self.graph.nodes if node.kind in _MEASURED])

    @property
    def is_embedded(self) -> bool:
        """Whether its model is the embedded one."""
        return is_embedded(self._model_config)

    @cached_property
    def model(self) -> ComponentModel:
        """The untouched model."""
        return load(self._model_config)

    @property
    def model_title(self) -> str:
        """What the model is called."""
        return model_title(self._model_config)

    @cached_property
    def transcoders(self) -> TranscoderSet:
        """Where its features come from."""
        return read_transcoders(transcoders_place(self._transcoders.name, self._model_config), self._transcoders)

    def workload(self, pairs: int) -> None:
        """A prompt is no task."""
        return None

    def documents(self, corpus: Sequence[str], generated: int) -> Sequence[Document]:
        """The text that nodes are looked at on. Raises ConfigError where nothing says which."""
        found = _documents(self._model_config, corpus, generated)
        if found is None:
            raise ConfigError("which text? --corpus FILE ... (only the embedded model has its own)")
        return found


Subject = Discovered | Traced | TracedTask
"""What is named: the nodes of a run."""


def subject_of(store: RunStore) -> Subject:
    """What a run directory holds. Raises RunConflict where it holds nothing that could be named."""
    if store.path(CONFIG).exists() and store.finished("task graph"):
        return TracedTask(store)
    if store.path(GRAPH).exists() and store.finished("graph"):
        return Traced(store)
    if store.finished("circuit") and store.path(CONFIG).exists():
        return Discovered(store)
    raise RunConflict(
        f"{store.directory} has no circuit yet: finish the run of edgewise discover or edgewise trace first"
    )
