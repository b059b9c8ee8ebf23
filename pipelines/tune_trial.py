"""One trial: what is tried, its scores, its circuit, its numbers; given up early where others did better on as few pairs."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import MethodConfig, RunConfig
from pipelines.store import RunStore
from pipelines.toml_text import to_toml
from pipelines.tune_bench import Bench, Scored, largest_score
from pipelines.tune_config import OBJECTIVES
from pipelines.tune_space import BASELINE, Facts, Space

if TYPE_CHECKING:
    from optuna import Trial


def run_trial(bench: Bench, space: Space, trial: Trial, number: int) -> tuple[float, ...]:
    """The trial's values, by the study's objectives. `number` is its place in the study (0: the baseline).

    What was found is kept in the trial's user attributes, with the settings of the run as TOML. Raises TrialPruned, or
    ValueError where a combination is impossible.
    """
    baseline = number == 0
    method = MethodConfig(BASELINE) if baseline else space.method(trial)
    ablation = space.base.ablation if baseline else space.ablation(trial)
    watch = None if baseline or not _prunes(bench) else _Watch(bench, space, trial, method, ablation)
    scored = bench.scored(method, ablation, watch)
    candidate = _candidate(space, trial, method, ablation, scored)
    trial.set_user_attr("scores", scored.store.directory.name)
    found = _judged(bench, trial, candidate, scored) if watch is not None else bench.judged(candidate, scored)
    found["seconds"] = scored.seconds
    if "size" in found:  # chosen by the curve
        candidate = dataclasses.replace(
            candidate, selection=dataclasses.replace(candidate.selection, size=found["size"])
        )
    if baseline:
        trial.set_user_attr("baseline", True)
        trial.set_user_attr("random", bench.random_curve(scored.edges))
    trial.set_user_attr("found", {key: float(value) for key, value in found.items()})
    trial.set_user_attr("config", to_toml(candidate))
    return tuple(float(found[name]) for name in bench.tune.objectives)


def _prunes(bench: Bench) -> bool:
    """Whether trials can be given up: there is one objective, and some of the pairs say something of it."""
    names = bench.tune.objectives
    return len(names) == 1 and OBJECTIVES[names[0]].judged


def _candidate(space: Space, trial: Trial, method: MethodConfig, ablation: str, scored: Scored) -> RunConfig:
    """The settings of the run that the trial stands for. What was asked for once stays."""
    topology = scored.edges.topology
    nodes = sum(bool(slots) for slots in topology.slots_of) if scored.store.finished("nodes") else None
    own, drawn = scored.edges.kept is not None, bool(scored.store.read_draws())
    facts = Facts(topology.edge_count, largest_score(scored.edges), nodes, own, drawn)
    selection = space.selection(trial, facts)
    return dataclasses.replace(space.base, method=method, ablation=ablation, selection=selection, out=None)  # type: ignore[arg-type]


def _judged(bench: Bench, trial: Trial, candidate: RunConfig, scored: Scored) -> dict[str, Any]:
    """The numbers on all validation pairs, reported after the first batches and given up where they are hopeless."""
    from discovery.measure import FlatMetric

    batches, found = len(bench.inputs.held_out.batches), {}
    parts = sorted({*(_part(batches, share) for share in (0.25, 0.5)), batches})
    try:
        for seen, found in bench.judged_in_parts(candidate, scored, parts):
            if seen < batches:
                _report(trial, found[bench.tune.objectives[0]], 100 + round(100 * seen / batches))
    except FlatMetric:  # a part of the pairs tells nothing; all of them may
        return bench.judged(candidate, scored)
    return found


def _part(batches: int, share: float | int) -> int:
    """How many batches hold about a share of the pairs."""
    return max(1, round(batches * share))


def _report(trial: Trial, value: float | int, step: int) -> None:
    """Tells the study a value on part of the pairs. Raises TrialPruned where it is hopeless."""
    from optuna import TrialPruned

    trial.report(float(value), step)
    if trial.should_prune():
        raise TrialPruned


class _Watch:
    """Looks at a trial when a quarter of the pairs is scored: at the circuit that the mean over these pairs gives, on a
    quarter of the validation pairs."""

    def __init__(self, bench: Bench, space: Space, trial: Trial, method: MethodConfig, ablation: str) -> None:
        self.bench, self.space, self.trial = bench, space, trial
        self.method, self.ablation = method, ablation
        self.seconds = 0.0
        self._sum: Any = 0.0
        self._pairs = 0
        batches = len(bench.inputs.train.batches)
        self._when = _part(batches, 0.25) if batches > 1 else None

    def __call__(self, number: int, scores: Any) -> None:
        """Takes in the scores of a batch's pairs. Raises TrialPruned."""
        start = time.perf_counter()
        try:
            if self._when is not None and number < self._when and scores.ndim == 3:  # nodes: when all are scored
                self._sum = self._sum + scores.sum(0).double().cpu().numpy()
                self._pairs += len(scores)
                if number + 1 == self._when:
                    self._look(self._sum / self._pairs)
        finally:
            self.seconds += time.perf_counter() - start

    def _look(self, mean: np.ndarray) -> None:
        from discovery.measure import FlatMetric
        from graphs.scores import EdgeScores

        topology, work = self.bench.inputs.model.topology, self.bench.inputs.held_out
        values = np.where(topology.possible, mean, np.nan).astype(np.float32)
        partial = Scored(EdgeScores(topology, values, self.method.name), _nothing_yet(self.bench), 0.0)
        candidate = _candidate(self.space, self.trial, self.method, self.ablation, partial)
        some = dataclasses.replace(work, batches=work.batches[: _part(len(work.batches), 0.25)])
        try:
            found = self.bench.judged(candidate, partial, some)
        except FlatMetric:  # so few pairs tell nothing
            return
        _report(self.trial, found[self.bench.tune.objectives[0]], 25)


def _nothing_yet(bench: Bench) -> RunStore:
    """Stands for the directory of scores that are not finished."""
    store = RunStore(bench.cache / "unfinished")
    store.run = {"finished": []}
    return store
