"""What a study found: the trials that no other one beats, the one to start with, judged on pairs that no trial saw."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.config import RunConfig
from pipelines.settings import ConfigError, build, resolve
from pipelines.tune_bench import Bench
from pipelines.tune_config import OBJECTIVES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class Entry:
    """One complete trial."""

    number: int
    """In the study."""
    values: tuple[float, ...]
    """By the study's objectives."""
    found: dict[str, float]
    """Numbers on the validation pairs: edges, faithfulness, distance, seconds and those of the objectives."""
    config: str
    """Settings of a run, as TOML."""
    baseline: bool
    """Whether it is the random baseline."""
    random: tuple[tuple[float, float], ...] = ()
    """Of the baseline: mean edges and faithfulness of random circuits of the standard sizes."""
    unseen: dict[str, float] | None = None
    """The same numbers on pairs that no trial saw, for the trials that were judged there."""

    @property
    def run(self) -> RunConfig:
        """The settings, read."""
        return build(resolve(tomllib.loads(self.config), f"trial {self.number}"))

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data."""
        return dataclasses.asdict(self)


def entries(trials: Sequence[FrozenTrial]) -> tuple[Entry, ...]:
    """The complete trials, by number. Raises ConfigError with the first reason where every trial was impossible."""
    found = tuple(
        Entry(
            trial.number,
            tuple(trial.values),
            trial.user_attrs["found"],
            trial.user_attrs["config"],
            bool(trial.user_attrs.get("baseline")),
            tuple((float(edges), float(value)) for edges, value in trial.user_attrs.get("random", ())),
        )
        for trial in trials
        if trial.state.name == "COMPLETE"
    )
    if not any(not entry.baseline for entry in found):
        reasons = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        raise ConfigError(f"no trial was completed{': ' + reasons[0] if reasons else '; give more trials or time'}")
    return found


def front(found: Sequence[Entry], objectives: Sequence[str]) -> tuple[Entry, ...]:
    """The entries that no other one beats in every objective (or equals in all and beats in one), the best in the first
    objective first; of equal ones the earliest. The baseline is left out, and so are circuits no better than random ones of
    their size (unless all are like that): small and quick, they would always be there."""
    baseline = next((entry for entry in found if entry.baseline), None)
    others = [entry for entry in found if not entry.baseline]
    rivals = [entry for entry in others if beats_random(entry, baseline)] or others
    signs = np.array([1.0 if OBJECTIVES[name].direction == "minimize" else -1.0 for name in objectives])
    costs = np.array([entry.values for entry in rivals]).reshape(len(rivals), len(signs)) * signs
    kept = []
    for place, own in enumerate(costs):
        no_worse = (costs <= own).all(1)
        beaten = (no_worse & (costs < own).any(1)).any() or (costs[:place] == own).all(1).any()
        if not beaten:
            kept.append(place)
    kept.sort(key=lambda place: tuple(costs[place]))
    return tuple(rivals[place] for place in kept)


def recommended(best: Sequence[Entry], reach: float | int) -> Entry:
    """Of a front, the entry to start with: the smallest circuit with a faithfulness of `reach` or more that does not
    overshoot by more than it may fall short, else the one nearest to the full model."""
    near = [entry for entry in best if entry.found["distance"] <= 1 - reach + 1e-9]
    if len(best[0].values) == 1:
        return best[0]
    if near:
        return min(near, key=lambda entry: (entry.found["edges"], entry.found["distance"], entry.found["seconds"]))
    return min(best, key=lambda entry: (entry.found["distance"], entry.found["edges"]))


def judge_unseen(bench: Bench, chosen: Sequence[Entry], bootstrap: int) -> tuple[Entry, ...]:
    """The entries with their numbers on the run's held-out pairs. The circuits are the ones that the trials judged."""
    work = bench.inputs.workload_of(bench.inputs.unseen)
    judged = []
    for entry in chosen:
        candidate = entry.run
        scored = bench.scored(candidate.method, candidate.ablation)
        found = bench.judged(candidate, scored, work, bootstrap)
        numbers = {key: float(value) for key, value in {**found, "seconds": entry.found["seconds"]}.items()}
        judged.append(dataclasses.replace(entry, unseen=numbers))
    return tuple(judged)


def beats_random(entry: Entry, baseline: Entry | None) -> bool:
    """Whether a circuit is nearer to the full model than random ones of its size (true where there are none)."""
    rival = random_distance(baseline, entry.found["edges"])
    return rival is None or entry.found["distance"] < rival


def random_distance(baseline: Entry | None, edges: float | int) -> float | None:
    """|1 - faithfulness| of random circuits with about so many edges (between the standard sizes: on a line over the
    logarithm of the edges); None without a baseline."""
    if baseline is None or not baseline.random:
        return None
    sizes = np.log1p([size for size, _ in baseline.random])
    return float(np.interp(np.log1p(edges), sizes, [abs(1 - value) for _, value in baseline.random]))
