"""What `edgewise tune` may try, and what it is after: the `[tune]` table of a settings file. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pipelines.settings import ConfigError, Settings, coerce, resolve

AblationName = Literal["counterfactual", "zero", "mean", "mean-positional", "resample", "noise", "optimal"]


@dataclass(frozen=True)
class Objective:
    """Something that trials are judged by."""

    summary: str
    """In words, for tables and axes."""
    direction: Literal["minimize", "maximize"]
    """What is better."""
    curve: bool = False
    """Whether it is read from the curve over all sizes, so that no size is searched for."""
    judged: bool = True
    """Whether it comes from runs on pairs, so that some of the pairs already say something."""


OBJECTIVES: dict[str, Objective] = {
    "distance": Objective("|1 - faithfulness| of the circuit", "minimize"),
    "faithfulness": Objective("faithfulness of the circuit", "maximize"),
    "cmd": Objective("circuit-model distance (CMD)", "minimize", curve=True),
    "cmd-log": Objective("circuit-model distance over log size", "minimize", curve=True),
    "cpr": Objective("circuit performance ratio (CPR)", "maximize", curve=True),
    "edges": Objective("edges of the circuit", "minimize", judged=False),
    "seconds": Objective("seconds for the scores", "minimize", judged=False),
}


@dataclass(frozen=True)
class TuneConfig:
    """The search. Empty lists stand for what `pipelines.tune_space` says."""

    methods: tuple[str, ...] = ()
    """Methods to try; none: all but the slow ones."""
    ablations: tuple[AblationName, ...] = ()
    """Ablations to *score* under; none: the run's own, mean and zero. Every circuit is judged under the run's own."""
    objectives: tuple[str, ...] = ("distance", "edges", "seconds")
    """Names in OBJECTIVES. One alone: hopeless trials are given up early."""
    sizes: tuple[float, ...] = (0.005, 0.5)
    """Smallest and largest circuit, as shares of the possible edges (of the nodes, where nodes are scored)."""
    cuts: tuple[Literal["size", "threshold"], ...] = ("size", "threshold")
    """How circuits are cut out: so many edges, or edges above a share of the largest |score|."""
    rules: tuple[Literal["top", "greedy"], ...] = ("top", "greedy")
    """Selections to try."""
    by: tuple[Literal["absolute", "signed"], ...] = ("absolute", "signed")
    """Rankings to try."""
    stability: tuple[float, ...] = ()
    """Values of `selection.min_stability` to try beside none."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> option -> [lowest, highest], a list of choices, or the one value."""
    validation: float = 0.3
    """Share of the scoring pairs that trials are judged on; the run's held-out pairs are seen by no trial."""
    trials: int = 50
    """Trials in the study, over all its workers."""
    timeout: float | None = None
    """Seconds after which no new trial is begun."""
    workers: int = 1
    """Processes that this command starts."""

    @property
    def curve(self) -> bool:
        """Whether trials are judged by the curve over all sizes."""
        return any(OBJECTIVES[name].curve for name in self.objectives)

    def identity(self) -> dict[str, Any]:
        """What commands on one study must agree in: all but how long and with how many workers."""
        content = dataclasses.asdict(self)
        return {key: value for key, value in content.items() if key not in ("trials", "timeout", "workers")}


_RANGES: dict[str, tuple[float, float]] = {
    "sizes": (0, 1),
    "stability": (0, 1),
    "validation": (0.01, 0.99),
    "trials": (1, 1e6),
    "timeout": (0, float("inf")),
    "workers": (1, 256),
}


def read_tune(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> TuneConfig:
    """The `[tune]` tables of (where, table), later ones winning. Raises ConfigError naming where and the key."""
    values: dict[str, Any] = {}
    kinds = get_type_hints(TuneConfig)
    for where, table in layers:
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, n=1, cutoff=0.5) or list(kinds)
                raise ConfigError(f"{where}: unknown key 'tune.{name}'; did you mean {' or '.join(map(repr, near))}?")
            values[name] = _typed(name, value, kinds[name], where)
    config = TuneConfig(**values)
    _check(config)
    return config


def _typed(name: str, value: Any, kind: Any, where: str) -> Any:
    try:
        value = coerce(value, kind)
    except ValueError as error:
        raise ConfigError(f"{where}: tune.{name} must be {error}, not {value!r}") from None
    low, high = _RANGES.get(name, (float("-inf"), float("inf")))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ConfigError(f"{where}: tune.{name} must lie between {low:g} and {high:g}, not {number!r}")
    return value


def _check(config: TuneConfig) -> None:
    for name in config.objectives:
        if name not in OBJECTIVES:
            raise ConfigError(f"tune.objectives: there is no objective {name!r} (objectives: {', '.join(OBJECTIVES)})")
    for key in ("objectives", "cuts", "rules", "by"):
        values = getattr(config, key)
        if not values or len(set(values)) != len(values):
            raise ConfigError(f"tune.{key} needs at least one name, and each only once")
    if len(config.sizes) != 2 or not 0 < config.sizes[0] < config.sizes[1]:
        raise ConfigError(f"tune.sizes is [smallest, largest], shares of the edges such as [0.01, 0.5]: {config.sizes}")


def tune_file(path: str | Path) -> tuple[Settings, Mapping[str, Any]]:
    """The settings of a TOML file, and its `[tune]` table. Raises ConfigError naming the file."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    tune = table.pop("tune", {})
    if not isinstance(tune, Mapping):
        raise ConfigError(f"{path}: tune must be a table, not {tune!r}")
    return resolve(table, str(path)), tune


def tune_assignments(assignments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """`--set` texts apart from those of `tune.`, and the table that these make."""
    table: dict[str, Any] = {}
    others = []
    for text in assignments:
        name, _, written = text.partition("=")
        section, _, key = name.strip().partition(".")
        if section != "tune":
            others.append(text)
            continue
        try:
            table[key] = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = written.strip()
    return others, table
