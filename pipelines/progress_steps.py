"""One checkpoint of `edgewise progress`: its run, and what a circuit and all else do at it, measured once."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.checkpoints import Checkpoint
from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.discover import take_constants
from pipelines.fingerprint import hash_settings
from pipelines.inputs import Inputs, read_task
from pipelines.store import CIRCUIT, IDENTITY, RunStore

if TYPE_CHECKING:
    from discovery.restricted_loss import Measures
    from graphs.circuit import Circuit
    from graphs.scores import EdgeScores

WATCHED = "progress.json"
RANDOM = 5
"""Random circuits of whole paths, with no fewer edges, whose mean stands beside the circuit."""


@dataclass(frozen=True, eq=False)
class Step:
    """A checkpoint and what is known of it."""

    checkpoint: Checkpoint
    """Which."""
    config: RunConfig
    """The settings of its run."""
    store: RunStore
    """The run."""
    scores: EdgeScores | None = None
    """Of every edge."""
    own: Circuit | None = None
    """The run's circuit; None where the metric tells nothing."""
    found: dict[str, Any] = dataclasses.field(default_factory=dict)
    """See `watch_step`."""

    def read_circuit(self) -> Circuit | None:
        """The run's circuit, where it has one."""
        from graphs.exporters.circuit_json import read_circuit

        if not self.store.finished("circuit"):
            return None
        return read_circuit(self.store.path(CIRCUIT).read_bytes())


def watch_step(step: Step, fixed: Circuit | None) -> dict[str, Any]:
    """What the model, the circuit (None: the run's own), all else and random circuits do on the held-out pairs, read from the
    run directory where it was measured before.

    `full`, `empty`, `circuit`, `rest`, `random`: {metric, loss, accuracy}, of circuits also `faithfulness` (null where it is
    0/0), with its interval in `circuit` and `rest`; `gap`: the metric's difference between all edges and none, with its
    standard error; `known`: share of the pairs whose answer the model knows; `pairs`.
    """
    circuit = step.own if fixed is None else fixed
    key = _key(step, circuit)
    if step.store.path(WATCHED).exists():
        stored = step.store.read_json(WATCHED)
        if isinstance(stored, dict) and stored.get("key") == key:
            return stored["found"]
    inputs = Inputs(step.config, read_task(step.config), Clock())
    if step.config.ablation == "optimal":
        take_constants(step.store, inputs)
    inputs.prepare()
    found = _measured(inputs, circuit, step.config)
    step.store.write_json(WATCHED, {"key": key, "found": found})
    return found


def _key(step: Step, circuit: Circuit | None) -> str:
    """A name for everything that the numbers depend on."""
    kept = None if circuit is None else hashlib.sha256(circuit.kept.tobytes()).hexdigest()
    return hash_settings({**{name: step.store.run[name] for name in IDENTITY}, "circuit": kept, "random": RANDOM})


def _measured(inputs: Inputs, circuit: Circuit | None, config: RunConfig) -> dict[str, Any]:
    from discovery.evaluate import random_rivals
    from discovery.restricted_loss import measure_all
    from discovery.statistics import rounding_noise
    from graphs.prune import complement

    runs = [] if circuit is None else [circuit, complement(circuit), *random_rivals(circuit, RANDOM, config.seed)]
    measures = measure_all(inputs.model, inputs.held_out, runs)
    metric = measures.of("metric")
    gaps = metric[0] - metric[1]
    found: dict[str, Any] = {
        "pairs": len(gaps),
        "known": float(measures.known.mean()),
        "gap": float(gaps.mean()),
        "gap_stderr": float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None,
        "full": _means(measures, slice(0, 1)),
        "empty": _means(measures, slice(1, 2)),
    }
    flat = not abs(gaps.mean()) > rounding_noise(metric[0], metric[1])
    for name, place in (("circuit", slice(2, 3)), ("rest", slice(3, 4)), ("random", slice(4, None))):
        found[name] = None if circuit is None else _means(measures, place) | _faithful(metric, place, flat, config)
    return found


def _means(measures: Measures, place: slice) -> dict[str, float]:
    from discovery.restricted_loss import MEASURES

    return {name: float(measures.of(name)[place].mean()) for name in MEASURES}


def _faithful(metric: np.ndarray, place: slice, flat: bool, config: RunConfig) -> dict[str, float | None]:
    """Faithfulness (the mean of several circuits') and its bootstrap interval; nothing where it is 0/0."""
    from discovery.statistics import faithfulness, faithfulness_interval

    if flat:
        return {"faithfulness": None, "low": None, "high": None}
    value = float(faithfulness(metric[place].mean(1), metric[0].mean(), metric[1].mean()).mean())
    if not config.evaluation.bootstrap or place.stop is None:
        return {"faithfulness": value, "low": None, "high": None}
    low, high = faithfulness_interval(metric[place], metric[0], metric[1], config.evaluation.bootstrap, config.seed)
    return {"faithfulness": value, "low": float(low[0]), "high": float(high[0])}
