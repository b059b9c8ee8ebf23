"""The model and the tokenised task of a run, loaded when they are first needed, and what they are known by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.fingerprint import hash_file, hash_pairs
from pipelines.model_source import hash_model, load, model_title
from pipelines.settings import ConfigError
from pipelines.transcoders import hash_transcoders, read_transcoders

if TYPE_CHECKING:
    from discovery.ablation import Ablation
    from discovery.batch import Batch
    from discovery.batches import Alignment
    from discovery.component_model import ComponentModel
    from discovery.feature_choice import FeatureChoice
    from discovery.metrics import Metric
    from discovery.preparation import AblationSettings
    from discovery.task import Task
    from discovery.workload import Workload


def read_task(config: RunConfig) -> Task:
    """The task of these settings."""
    from discovery.task_source import load_task

    wanted = config.task
    return load_task(
        wanted.source, columns=wanted.columns, limit=wanted.limit, seed=config.seed, options=wanted.options
    )


_MIB_BATCH = 20


class Inputs:
    """Model, train and held-out workloads of one configuration. `prepare` loads them, `hashes` only where it must."""

    def __init__(self, config: RunConfig, task: Task, clock: Clock, alignment: Alignment | None = None) -> None:
        """alignment: how corrupt prompts are laid beside clean ones; default: as the ablation needs it."""
        self._wanted_alignment: Alignment | None = alignment
        self.config = config
        self.task = task
        self.clock = clock
        self._model: ComponentModel | None = None
        self._workloads: tuple[Workload, Workload] | None = None
        self.choice: FeatureChoice | None = None
        self.constants: bytes | None = None
        """The content of a file of learned constants, to be used instead of learning them."""

    @property
    def model(self) -> ComponentModel:
        """The model, loaded on first use; from `prepare` on with its features, where there are transcoders."""
        if self._model is None:
            with self.clock.time("model"):
                self._model = load(self.config.model)
        return self._model

    def hashes(self) -> dict[str, Any]:
        """SHA-256 of the model's files (its commit, for a hub name), the task's pairs and the ground truth's file."""
        with self.clock.time("hashes"):
            model = hash_model(self.config.model)
        truth = self.config.evaluation.ground_truth
        return {
            "model": model,
            "task": hash_pairs((*self.task.pairs, *self.task.held_out), self.config.task.spans == "task"),
            "ground_truth": None if truth is None else hash_file(Path(truth)),
            **self._transcoder_hashes(),
            **self._scores_hash(),
        }

    def _scores_hash(self) -> dict[str, Any]:
        file = self.config.method.file
        return {} if file is None else {"scores": hash_file(Path(file))}

    def _transcoder_hashes(self) -> dict[str, Any]:
        name = self.config.transcoders.name
        if name is None:
            return {}
        with self.clock.time("hashes"):
            return {"transcoders": hash_transcoders(name)}

    def prepare(self) -> None:
        """Loads the model, tokenises the pairs, chooses features, checks the first batch, measures the ablation."""
        from discovery.loading import check_first_batch
        from discovery.task import split
        from discovery.workload import Workload

        holdout = self.config.evaluation.holdout
        with self.clock.time("batches"):
            train, held_out = split(self.task, holdout, self.config.seed)
            train_batches, held_out_batches = self._both(train, held_out)
            if self.config.task.spans != "none":
                self._take_spans((*train_batches, *held_out_batches))
                train_batches, held_out_batches = self._both(train, held_out)  # a larger graph may need smaller batches
        if self.config.transcoders.name is not None:
            self._take_features(train_batches)
        with self.clock.time("check"):
            check_first_batch(self.model, train_batches[0])
        with self.clock.time("ablation"):
            ablation = self._ablation(train_batches)
        self._workloads = (
            Workload(train_batches, self.metric, ablation, self._library_batch()),
            Workload(held_out_batches, self.metric, ablation),
        )

    def _library_batch(self) -> int | None:
        """Pairs in one batch of the EAP-IG library, where its way of averaging is asked for (MIB's default is 20)."""
        if self.config.convention != "mib":
            return None
        return _MIB_BATCH if self.config.batch_size == "auto" else self.config.batch_size

    def _ablation(self, batches: tuple[Batch, ...]) -> Ablation:
        from discovery.constants_file import constants_from_bytes
        from discovery.preparation import prepare_ablation
        from discovery.token_input import keep_positions

        if self.constants is not None:
            return constants_from_bytes(self.constants, self.model)
        ablation = prepare_ablation(self.model, self.config.ablation, batches, self._ablation_settings())
        return keep_positions(self.model, ablation, batches) if self.config.convention == "mib" else ablation

    def _ablation_settings(self) -> AblationSettings:
        from discovery.optimal_ablation import LearningSettings
        from discovery.preparation import AblationSettings

        wanted = self.config.ablating
        return AblationSettings(
            seed=self.config.seed,
            noise_scale=wanted.noise_scale,
            noise_tokens=self._noise_tokens() if self.config.ablation == "noise" else (),
            learning=LearningSettings(steps=wanted.learning_steps),
        )

    def _noise_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that get noise. Raises ConfigError for what is no id, where there is no tokenizer."""
        tokenizer, found = self.model.tokenizer, []
        for text in self.config.ablating.noise_tokens:
            if tokenizer is not None:
                found += tokenizer.encode(text, add_special_tokens=False)
            elif text.isdecimal():
                found.append(int(text))
            else:
                raise ConfigError(f"ablating.noise_tokens: the model has no tokenizer, so {text!r} must be a token id")
        return tuple(found)

    def replace_ablation(self, ablation: Ablation) -> None:
        """Puts another ablation in the place of the workloads' own."""
        train, held_out = self._loaded
        self._workloads = (
            dataclasses.replace(train, ablation=ablation),
            dataclasses.replace(held_out, ablation=ablation),
        )

    def _take_features(self, batches: tuple[Batch, ...]) -> None:
        """Puts features in the place of the model's MLPs: those of `choice`, or the ones that it finds here."""
        from discovery.ablation import Ablation
        from discovery.feature_choice import choose_features
        from discovery.feature_model import FeatureModel
        from discovery.methods.eap_ig import quadrature
        from discovery.workload import Workload

        wanted = self.config.transcoders
        assert wanted.name is not None
        with self.clock.time("transcoders"):
            transcoders = read_transcoders(wanted.name, wanted)
        with self.clock.time("features"):
            if self.choice is None:
                # Means are measured with the features of every dictionary, not with those of this graph.
                kind = self.config.ablation
                measured = kind in ("mean", "mean-positional", "optimal")
                work = Workload(batches, self.metric, Ablation(kind) if measured else self._ablation(batches))
                points = quadrature(wanted.steps, "midpoint")
                self.choice = choose_features(self.model, transcoders, work, wanted.features, points)
            self._model = FeatureModel(self.model, transcoders, self.choice.by_layer, wanted.heads)

    @property
    def metric(self) -> Metric:
        """The metric of the settings, or the task's own. Raises ConfigError where there is none of that name."""
        from discovery.metrics import METRICS

        name = self.config.task.metric or self.task.metric
        if name not in METRICS:
            raise ConfigError(f"there is no metric {name!r} (metrics: {', '.join(METRICS)})")
        return METRICS[name]

    def _both(self, train: Task, held_out: Task) -> tuple[tuple[Batch, ...], tuple[Batch, ...]]:
        """Batches of both splits, which may be the same."""
        batches = self._batches(train)
        return batches, batches if held_out is train else self._batches(held_out)

    def _take_spans(self, batches: tuple[Batch, ...]) -> None:
        """Gives the model's nodes the positions that the prompts' spans are."""
        from discovery.span_model import SpanModel
        from discovery.span_places import spans_of

        if self.config.transcoders.name is not None:
            raise ConfigError("spans do not go together with features as nodes: leave out --spans or --transcoders")
        self._model = SpanModel(self.model, spans_of(batches))

    def _batches(self, task: Task) -> tuple[Batch, ...]:
        from discovery.batches import make_batches
        from pipelines.processes import shared_batch_size

        wanted, settings = self.config.task, self.tokenisation()
        if self.config.batch_size == "auto":
            settings["batch_size"] = shared_batch_size(settings["batch_size"], len(task.pairs))
        return make_batches(
            task,
            self.model.tokenizer,
            misaligned=wanted.misaligned,
            spans=wanted.spans,
            alignment=self.alignment(),
            **settings,
        )

    def alignment(self) -> Alignment:
        """How corrupt prompts are laid beside clean ones, which only some ablations need."""
        from discovery.ablation import needs_alignment

        if self._wanted_alignment is not None:
            return self._wanted_alignment
        if self.config.ablation == "mean-span":
            if self.config.task.spans == "none":
                raise ConfigError("ablation 'mean-span' needs spans: give --spans task")
            return "spans" if self.config.task.spans == "task" else "tokens"
        if not needs_alignment(self.config.ablation, bool(self.config.ablating.noise_tokens)):
            return "none"
        return "spans" if self.config.task.spans == "task" else "tokens"

    def tokenisation(self) -> dict[str, Any]:
        """How pairs become batches for this model: what `make_batches` and `validate` are told alike."""
        from discovery.batches import model_limits
        from discovery.memory import auto_batch_size

        model, size = self.model, self.config.batch_size
        max_length, vocabulary = model_limits(model.config)
        return {
            "batch_size": (lambda tokens: auto_batch_size(model, tokens)) if size == "auto" else size,
            "bos": self.config.task.bos,
            "chat_template": self.config.task.chat_template,
            "max_length": max_length,
            "vocabulary": vocabulary,
        }

    @property
    def train(self) -> Workload:
        """What edges are scored on."""
        return self._loaded[0]

    @property
    def held_out(self) -> Workload:
        """What circuits are evaluated on: pairs that were not scored on, or the same ones with holdout 0."""
        return self._loaded[1]

    @property
    def _loaded(self) -> tuple[Workload, Workload]:
        if self._workloads is None:
            self.prepare()
        assert self._workloads is not None
        return self._workloads

    def some_of_train(self, pairs: int) -> Workload:
        """The first batches of the scoring split, up to about `pairs` pairs (one batch at least)."""
        chosen: list[Batch] = []
        for batch in self.train.batches:
            if chosen and sum(map(len, chosen)) + len(batch) > pairs:
                break
            chosen.append(batch)
        return dataclasses.replace(self.train, batches=tuple(chosen))

    def describe_model(self) -> dict[str, Any]:
        """What run.json says of the model."""
        topology, device = self.model.topology, str(self.model.device)
        width = self.model.config.get_text_config().hidden_size
        return {
            "name": model_title(self.config.model), "edges": topology.edge_count, "d_model": width, "device": device
        }  # fmt: skip

    def describe_features(self) -> dict[str, Any]:
        """What run.json says of the features that are nodes."""
        assert self.choice is not None
        counts = {"chosen": len(self.choice.attributions), "live": self.choice.live, "share": self.choice.share}
        return {**counts, "heads": self.config.transcoders.heads}

    def device_memory(self) -> dict[str, int]:
        """Largest number of bytes that tensors took on a CUDA device so far; nothing on others."""
        from discovery.memory import peak_device_memory

        peak = peak_device_memory(self.model.device)
        return {} if peak is None else {"peak_device_memory_bytes": peak}

    def describe_task(self) -> dict[str, Any]:
        """What run.json says of the task."""
        return {
            "name": self.task.name,
            "metric": self.metric.name,
            "pairs": len(self.task.pairs),
            "train_pairs": self.train.pair_count,
            "held_out_pairs": self.held_out.pair_count,
            "batch_size": max(len(batch) for batch in self.train.batches),
            **({} if self.config.task.spans == "none" else {"spans": self._span_names()}),
        }

    def _span_names(self) -> list[int | str]:
        """The spans that nodes stand at, in the order of the prompts."""
        from discovery.span_model import SpanModel

        return list(self.model.spans.names) if isinstance(self.model, SpanModel) else []
