"""Where trials work: one model and its pairs, scores that are computed once, circuits judged on pairs not scored on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from pipelines.clock import Clock
from pipelines.config import ExportConfig, LabelsConfig, MethodConfig, RunConfig
from pipelines.discover import settings_of
from pipelines.fingerprint import edgewise_version, hash_settings
from pipelines.inputs import Inputs, read_task
from pipelines.node_results import keep_nodes
from pipelines.scoring import rule_of, score
from pipelines.selection import select
from pipelines.settings import ConfigError
from pipelines.store import RunStore
from pipelines.stored_pieces import StoredPieces
from pipelines.tune_config import TuneConfig

if TYPE_CHECKING:
    from discovery.ablation import Ablation
    from discovery.evaluate import Question
    from discovery.evaluation import Curve, Evaluation
    from discovery.measure import Measured
    from discovery.task import Task
    from discovery.workload import Workload
    from graphs.circuit import Circuit
    from graphs.scores import EdgeScores

PIECES = 8
"""Parts of the pairs after which a lone objective is looked at, so that hopeless trials can be given up."""
_ALIGNED = "counterfactual"
_DRAWS = 5
"""Random circuits of each size, whose mean stands beside what is found."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a trial, new or found."""

    edges: EdgeScores
    """Of edges; of node scores those that rank edges by their weaker end."""
    store: RunStore
    """Where they lie, as in a run directory."""
    seconds: float
    """What computing them took (when they were computed), constants that were learned for the ablation included."""


@runtime_checkable
class Watch(Protocol):
    """What looks at scores while they are computed."""

    seconds: float
    """How long it has looked; no part of the scoring's time."""

    def __call__(self, number: int, scores: Any) -> None:
        """As `discovery.scoring.OnBatch`."""
        ...


class TuneInputs(Inputs):
    """The scoring pairs of a run, divided once more: trials score on one part and are judged on the other. The run's own
    held-out pairs are in neither."""

    def __init__(self, config: RunConfig, tune: TuneConfig, ablations: Sequence[str]) -> None:
        from discovery.ablation import needs_alignment
        from discovery.task import split

        if not config.evaluation.holdout:
            raise ConfigError("tune needs pairs that no trial sees: give evaluation.holdout a share above 0")
        whole = read_task(config)
        train, self.unseen = split(whole, config.evaluation.holdout, config.seed)
        named = bool(config.ablating.noise_tokens)
        aligned = any(needs_alignment(kind, named) for kind in (config.ablation, *ablations))  # type: ignore[arg-type]
        inside = dataclasses.replace(
            config,
            evaluation=dataclasses.replace(config.evaluation, holdout=tune.validation),
            ablation=_ALIGNED if aligned else config.ablation,
        )
        super().__init__(inside, train, Clock())
        self._judge = config.ablation
        self._few = len(tune.objectives) == 1
        self._prepared: dict[str, tuple[Ablation, float]] = {}

    def prepare(self) -> None:
        """As for a run; with a lone objective, batches small enough for trials to be given up between them."""
        super().prepare()
        assert self._workloads is not None
        train, validation = self._workloads
        if self._few:
            train, validation = _in_pieces(train), _in_pieces(validation)
        self._workloads = train, dataclasses.replace(validation, ablation=self.ablation_of(self._judge)[0])

    def ablation_of(self, kind: str) -> tuple[Ablation, float]:
        """An ablation, measured or learned on the scoring part, and the seconds that this took."""
        if kind not in self._prepared:
            clock = Clock()
            with clock.time("ablation"):
                other = Inputs(dataclasses.replace(self.config, ablation=kind), self.task, clock)
                other._model = self.model
                assert self._workloads is not None
                ablation = other._ablation(self._workloads[0].batches)
            self._prepared[kind] = ablation, clock.seconds["ablation"]
        return self._prepared[kind]

    def scored_under(self, kind: str) -> float:
        """Puts an ablation in the scoring part's place and gives the seconds that it took to prepare."""
        _ = self._loaded
        ablation, seconds = self.ablation_of(kind)
        self.replace_ablation(ablation)
        return seconds

    def replace_ablation(self, ablation: Ablation) -> None:
        """In the scoring part alone: circuits are judged under what was asked for."""
        train, validation = self._loaded
        self._workloads = dataclasses.replace(train, ablation=ablation), validation

    def workload_of(self, task: Task) -> Workload:
        """Other pairs, judged as the validation part is."""
        return dataclasses.replace(self.held_out, batches=self._batches(task))


def _in_pieces(work: Workload) -> Workload:
    from discovery.batch_pieces import pieces

    size = max(1, -(-work.pair_count // PIECES))
    return dataclasses.replace(work, batches=tuple(part for batch in work.batches for part in pieces(batch, size)))


class Bench:
    """What all trials of one process share."""

    def __init__(self, config: RunConfig, tune: TuneConfig, ablations: Sequence[str], cache: Path) -> None:
        self.config = config
        self.tune = tune
        self.inputs = TuneInputs(config, tune, ablations)
        self.cache = cache
        self._hashes: dict[str, Any] | None = None

    @property
    def hashes(self) -> dict[str, Any]:
        """Of the model's files, the pairs and whatever else is read."""
        if self._hashes is None:
            self._hashes = self.inputs.hashes()
        return self._hashes

    def identity(self) -> dict[str, Any]:
        """What results of this study depend on besides the search itself."""
        return self._identity(self.config)

    def _identity(self, config: RunConfig) -> dict[str, Any]:
        """As `pipelines.discover.identity`, with files hashed once."""
        return {"edgewise": edgewise_version(), "config": settings_of(config), "inputs": self.hashes}

    def scored(self, method: MethodConfig, ablation: str, watch: Watch | None = None) -> Scored:
        """The scores of a method, read if any trial of any process has computed them, else computed and stored.

        The directory's name is a hash of everything that decides scores. Two processes compute the same only if the second
        begins before the first is done; what they write is the same. watch: called after each batch, may raise.
        """
        draws = bool(self.tune.stability)
        selection = dataclasses.replace(
            type(self.config.selection)(),
            resamples=self.config.selection.resamples if draws else 0,
            seeds=self.config.selection.seeds if draws else 1,
        )
        config = dataclasses.replace(
            self.inputs.config,
            method=method,
            ablation=ablation,
            selection=selection,
            evaluation=dataclasses.replace(type(self.config.evaluation)(), holdout=self.tune.validation),
            labels=LabelsConfig(),
            export=ExportConfig(),
            out=None,
        )
        known = self._identity(config)
        store = RunStore(self.cache / hash_settings(known))
        store.open(known, "")
        if store.finished("scores"):
            edges = store.read_scores(self.inputs.model.topology)
        else:
            edges = self._compute(config, store, watch)
        return Scored(
            edges, store, sum(store.run["seconds"].get(step, 0.0) for step in ("scores", "gates", "ablation"))
        )

    def _compute(self, config: RunConfig, store: RunStore, watch: Watch | None) -> EdgeScores:
        inputs = self.inputs
        learning = inputs.scored_under(config.ablation)
        inputs.clock = Clock()
        found, draws = score(config, inputs, store, watch)
        edges = keep_nodes(store, found)
        store.write_draws(draws)
        store.write_scores(edges, config.task.source)
        looked = 0.0 if watch is None else watch.seconds
        store.note({**inputs.clock.seconds, "ablation": learning})
        store.finish("scores", inputs.clock.seconds["scores"] - looked)
        StoredPieces(store).clear()
        return edges

    def circuit(self, candidate: RunConfig, scored: Scored) -> Circuit:
        """The circuit that a candidate's selection cuts out, without dead ends."""
        from graphs.prune import drop_dead_ends

        return drop_dead_ends(select(candidate, self.inputs, scored.store, scored.edges)[0])

    def judged(
        self, candidate: RunConfig, scored: Scored, work: Workload | None = None, bootstrap: int = 0
    ) -> dict[str, Any]:
        """The numbers of a candidate by the names of objectives, with edges and faithfulness, on these pairs (default: the
        validation pairs). Raises FlatMetric where these pairs tell nothing."""
        from discovery.evaluate import ask

        question, read = self._question(candidate, scored, bootstrap)
        return read(ask(self.inputs.model, work or self.inputs.held_out, [question])[0])

    def judged_in_parts(
        self, candidate: RunConfig, scored: Scored, parts: Sequence[int]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """The same numbers after the first `parts[0]` batches of the validation pairs, after `parts[1]`, ...: every batch is
        run once."""
        from discovery.measure import measure

        question, read = self._question(candidate, scored, 0)
        work, start, measured = self.inputs.held_out, 0, None
        for stop in parts:
            part = dataclasses.replace(work, batches=work.batches[start:stop])
            new = measure(self.inputs.model, part, question.circuits)
            measured, start = new if measured is None else joined(measured, new), stop
            yield stop, read(question.read(measured))

    def _question(
        self, candidate: RunConfig, scored: Scored, bootstrap: int
    ) -> tuple[Question[Any], Callable[[Any], dict[str, Any]]]:
        """What is asked of the model about a candidate, and how its numbers are read from the answer."""
        from discovery.evaluate import circuit_question, curve_question

        if not self.tune.curve:
            circuit = self.circuit(candidate, scored)
            asked = circuit_question(circuit, completeness=False, bootstrap=bootstrap, seed=self.config.seed)
            return asked, _numbers
        curve = curve_question(
            scored.edges.topology,
            scored.edges,
            sizes=self.config.evaluation.sizes,
            select=rule_of(candidate),
            by=candidate.selection.by,
            bootstrap=bootstrap,
            seed=self.config.seed,
            faithfulness_only=True,
        )
        return curve, lambda answer: self._curve_numbers(answer, candidate.selection.size)

    def _curve_numbers(self, curve: Curve, size: float | None) -> dict[str, Any]:
        """The areas, and the numbers of the circuit of this size: where there is none yet, the smallest that reaches
        `selection.reach`, else the largest."""
        reach = self.config.selection.reach
        fitting = [p for p in curve.points if (p.faithfulness >= reach if size is None else p.size == size)]
        point = fitting[0] if fitting else curve.points[-1]
        areas = {"cmd": curve.cmd, "cmd-log": curve.cmd_log, "cpr": curve.cpr}
        return {**areas, **_numbers(point), "size": point.size}

    def random_curve(self, scores: EdgeScores) -> list[tuple[float, float]]:
        """Edges and faithfulness of random circuits of the standard sizes, on the validation pairs: means over draws."""
        from discovery.evaluate import ask, curve_question

        topology, rng = scores.topology, np.random.default_rng([self.config.seed, _DRAWS])
        questions = []
        for _ in range(_DRAWS):
            drawn = np.where(topology.possible, rng.standard_normal(scores.values.shape), np.nan).astype(np.float32)
            draw = dataclasses.replace(scores, values=drawn, stderr=None)
            sizes = self.config.evaluation.sizes
            questions.append(curve_question(topology, draw, sizes=sizes, bootstrap=0, faithfulness_only=True))
        curves = ask(self.inputs.model, self.inputs.held_out, questions)
        points = [[(point.edges, point.faithfulness) for point in curve.points] for curve in curves]
        return [(float(edges), float(value)) for edges, value in np.mean(points, axis=0)]


def joined(first: Measured, second: Measured) -> Measured:
    """The metrics of the pairs of both, for the same circuits."""
    return type(first)(
        np.concatenate([first.full, second.full]),
        np.concatenate([first.empty, second.empty]),
        np.concatenate([first.circuits, second.circuits], axis=1),
        np.concatenate([first.known, second.known]),
    )


def _numbers(point: Evaluation) -> dict[str, Any]:
    found = {"faithfulness": point.faithfulness, "distance": abs(1 - point.faithfulness), "edges": point.edges}
    return found if point.low is None else {**found, "low": point.low, "high": point.high}


def largest_score(scores: EdgeScores) -> float:
    """The largest |score| of the possible edges."""
    return float(np.abs(scores.values[scores.topology.possible]).max(initial=0.0))
