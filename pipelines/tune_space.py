"""What trials may try: a literal table of ranges for each method's options, and how a trial becomes a run's settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config import MethodConfig, RunConfig, SelectionConfig
from pipelines.default_method import AUTO, CANDIDATES
from pipelines.settings import ConfigError
from pipelines.tune_config import TuneConfig

if TYPE_CHECKING:
    from optuna import Trial

BASELINE = "random"
"""The method of the trial that the others must beat."""
SLOW = ("exact", "acdc", "edge-masks", "uniform-gradients", "screen-verify", "conditional")
"""Methods that learn or make many runs of the model: tried where they are named."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where both are."""

    low: float | int
    """Smallest."""
    high: float | int
    """Largest."""
    log: bool = True
    """Whether ratios count, not differences."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]
    """In any order."""


RANGES: dict[str, dict[str, Range | Choice]] = {
    "eap-ig": {
        "steps": Range(2, 30),
        "rule": Choice(("left", "right", "midpoint", "gauss-legendre")),
    },
    "eap-ig-activations": {
        "steps": Range(1, 10),
        "rule": Choice(("left", "right", "midpoint", "gauss-legendre")),
        "over": Choice(("all", "own")),
    },
    "atp-star": {
        "qk_fix": Choice((True, False)),
        "grad_drop": Choice((True, False)),
        "level": Choice(("edges", "nodes")),
    },
    "relp": {
        "norms": Choice((True, False)),
        "nonlinearity": Choice((True, False)),
        "attention": Choice((True, False)),
        "gates": Choice((True, False)),
    },
    "information-flow": {"tau": Choice((0.0, 0.005, 0.01, 0.02, 0.04, 0.08))},
    "edge-masks": {
        "sparsity": Choice((0.5, 0.7, 0.8, 0.9, 0.95, 0.98)),
        "steps": Range(100, 1000),
        "loss": Choice(("kl", "metric")),
    },
    "uniform-gradients": {
        "penalty": Range(1e-4, 1e-1),
        "steps": Range(100, 1000),
        "loss": Choice(("kl", "metric")),
    },
    "acdc": {
        "share": Range(1e-4, 0.1),
        "heads": Choice(("descending", "ascending")),
        "change": Choice(("drop", "absolute")),
    },
    "screen-verify": {"steps": Range(1, 20), "rule": Choice(("left", "midpoint", "gauss-legendre"))},
}
"""Method -> option -> what is tried. A method without a line is tried with its defaults."""


_CUTS: dict[str, tuple[str, ...]] = {"cut": (), "node_cut": ("nodes",), "own_cut": ("own",)}
"""Name of a parameter -> what may be tried beside the cuts for all: circuits of nodes, a method's own circuit."""


@dataclass(frozen=True)
class Facts:
    """What selections from some scores depend on."""

    edges: int
    """Of the graph."""
    largest: float
    """The largest |score|."""
    nodes: int | None = None
    """How many nodes were scored; None where edges were."""
    own: bool = False
    """Whether the method decides on a circuit."""
    drawn: bool = False
    """Whether scores were drawn again, so that stability is known."""


@dataclass(frozen=True)
class Space:
    """What a study searches."""

    base: RunConfig
    """The settings that no trial changes."""
    tune: TuneConfig
    """The search."""
    methods: tuple[str, ...]
    """Methods, in the table's order or the user's."""
    ablations: tuple[str, ...]
    """Ablations to score under, the run's own first where none are named."""
    ranges: Mapping[str, Mapping[str, Range | Choice]]
    """Of the options of these methods."""

    def method(self, trial: Trial) -> MethodConfig:
        """Asks for a method and its options."""
        name = trial.suggest_categorical("method", self.methods)
        options = {key: _suggest(trial, f"{name}.{key}", wanted) for key, wanted in self.ranges.get(name, {}).items()}
        return MethodConfig(name, {key: value for key, value in options.items() if value != _default(name, key)})

    def ablation(self, trial: Trial) -> str:
        """Asks for the ablation to score under."""
        return _one_of(trial, "ablation", self.ablations)

    def selection(self, trial: Trial, about: Facts) -> SelectionConfig:
        """Asks how the circuit is cut out of scores such as these."""
        tune = self.tune
        rule, by = _one_of(trial, "rule", tune.rules), _one_of(trial, "by", tune.by)
        chosen = dataclasses.replace(
            self.base.selection, edges=None, nodes=None, size=None, threshold=None, rule=rule, by=by
        )
        if tune.curve:
            return chosen
        if about.drawn and tune.stability:
            chosen = dataclasses.replace(
                chosen, min_stability=trial.suggest_categorical("stability", (None, *tune.stability))
            )
        low, high = max(tune.sizes[0], min(1 / about.edges, tune.sizes[1] / 2)), tune.sizes[1]
        kind = "node_cut" if about.nodes is not None else "own_cut" if about.own else "cut"
        cut = _one_of(trial, kind, (*_CUTS[kind], *tune.cuts))
        if cut == "own":
            return chosen
        if cut == "nodes" and about.nodes is not None:
            share = trial.suggest_float("node_share", low, high, log=True)
            return dataclasses.replace(chosen, nodes=max(1, round(share * about.nodes)))
        if cut == "threshold" and rule == "top":
            share = trial.suggest_float("threshold", 1e-4, 0.5, log=True)
            return dataclasses.replace(chosen, threshold=about.largest * share)
        return dataclasses.replace(chosen, size=trial.suggest_float("size", low, high, log=True))

    def first(self, number: int) -> dict[str, Any]:
        """The parameters that trial `number` is to begin with: each method with its defaults, from 1 on; for the baseline, 0,
        the middle of the sizes."""
        if number == 0:
            low, high = self.tune.sizes
            return {"cut": "size", "size": (low * high) ** 0.5, "rule": "top", "by": "absolute", "stability": None}
        if not 1 <= number <= len(self.methods):
            return {}
        name = self.methods[number - 1]
        found: dict[str, Any] = {"method": name}
        for key, wanted in self.ranges.get(name, {}).items():
            default = _default(name, key)
            if default in wanted.values if isinstance(wanted, Choice) else wanted.low <= default <= wanted.high:
                found[f"{name}.{key}"] = default
        return {**found, "ablation": self.ablations[0]} if len(self.ablations) > 1 else found


def make_space(base: RunConfig, tune: TuneConfig) -> Space:
    """What these settings let trials try. Raises ValueError naming an unknown method, option or range."""
    from discovery.methods import METHODS
    from pipelines.scoring import methods_of

    methods = tune.methods or tuple(name for name in METHODS if name not in (*SLOW, BASELINE))
    known = dict.fromkeys(("counterfactual", "mean", "zero"))
    ablations = tune.ablations or tuple(dict.fromkeys((base.ablation, *known)))
    ranges: dict[str, dict[str, Range | Choice]] = {}
    for name in methods:
        if name == AUTO:
            raise ConfigError(f"tune.methods: name the methods that {AUTO!r} stands for: {', '.join(CANDIDATES)}")
        own = dict(RANGES.get(name, {}))
        own |= {key: _range(name, key, value) for key, value in tune.options.get(name, {}).items()}
        for key, wanted in own.items():
            for value in wanted.values if isinstance(wanted, Choice) else (wanted.low, wanted.high):
                methods_of(dataclasses.replace(base, method=MethodConfig(name, {key: value})))
        methods_of(dataclasses.replace(base, method=MethodConfig(name)))
        ranges[name] = own
    unused = [name for name in tune.options if name not in methods]
    if unused:
        raise ConfigError(f"tune.options: {unused[0]!r} is not among the methods to try ({', '.join(methods)})")
    return Space(base, tune, methods, ablations, ranges)


def _range(method: str, key: str, value: Any) -> Range | Choice:
    """What the user wrote for an option."""
    if not isinstance(value, list):
        return Choice((value,))
    numbers = [item for item in value if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(value) == len(numbers) == 2:
        if not value[0] < value[1]:
            raise ConfigError(f"tune.options.{method}.{key} is [lowest, highest], not {value}")
        return Range(value[0], value[1], log=value[0] > 0)
    if not value:
        raise ConfigError(f"tune.options.{method}.{key} is empty: give [lowest, highest] or choices")
    return Choice(tuple(value))


def _suggest(trial: Trial, name: str, wanted: Range | Choice) -> Any:
    if isinstance(wanted, Choice):
        return trial.suggest_categorical(name, wanted.values)
    if isinstance(wanted.low, int) and isinstance(wanted.high, int):
        return trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log)
    return trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log)


def _one_of(trial: Trial, name: str, values: tuple[Any, ...]) -> Any:
    only, *others = values
    return trial.suggest_categorical(name, values) if others else only


def _default(method_name: str, key: str) -> Any:
    from discovery.methods import method

    defaults = (method(name).load().Options() for name in method_name.split("+"))
    return next(getattr(options, key) for options in defaults if hasattr(options, key))
