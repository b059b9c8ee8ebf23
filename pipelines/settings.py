"""Layers of settings from TOML files, flags and `--set`, checked and merged into a RunConfig. Unknown keys are errors.

Precedence: command line, then the file, then the defaults of `pipelines.config`. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipelines.config import RunConfig


class ConfigError(ValueError):
    """A setting that cannot be used: one line that names the key, where it stands and what to do."""


# Sections that may also be written as one string: `task = "ioi"` is `[task] source = "ioi"`.
SHORTHAND = {"model": "name", "task": "source", "transcoders": "name", "method": "name"}
# Flags whose names differ from their place in the file may also stand at the top of the file, under the flag's name.
ALIASES: dict[str, tuple[str, ...]] = {
    "revision": ("model", "revision"),
    "dtype": ("model", "dtype"),
    "device": ("model", "device"),
    "device_map": ("model", "device_map"),
    "kv_heads": ("model", "kv_heads"),
    "trust_remote_code": ("model", "trust_remote_code"),
    "limit": ("task", "limit"),
    "columns": ("task", "columns"),
    "metric": ("task", "metric"),
    "bos": ("task", "bos"),
    "chat_template": ("task", "chat_template"),
    "misaligned": ("task", "misaligned"),
    "spans": ("task", "spans"),
    "features": ("transcoders", "features"),
    "heads": ("transcoders", "heads"),
    "feature_steps": ("transcoders", "steps"),
    "recheck": ("transcoders", "recheck"),
    "recheck_tolerance": ("transcoders", "tolerance"),
    "scores": ("method", "file"),
    "noise_scale": ("ablating", "noise_scale"),
    "noise_tokens": ("ablating", "noise_tokens"),
    "learning_steps": ("ablating", "learning_steps"),
    "edges": ("selection", "edges"),
    "nodes": ("selection", "nodes"),
    "size": ("selection", "size"),
    "threshold": ("selection", "threshold"),
    "reach": ("selection", "reach"),
    "by": ("selection", "by"),
    "rule": ("selection", "rule"),
    "refine": ("selection", "refine"),
    "min_stability": ("selection", "min_stability"),
    "resamples": ("selection", "resamples"),
    "reruns": ("selection", "reruns"),
    "seeds": ("selection", "seeds"),
    "holdout": ("evaluation", "holdout"),
    "sizes": ("evaluation", "sizes"),
    "faithfulness_only": ("evaluation", "faithfulness_only"),
    "bootstrap": ("evaluation", "bootstrap"),
    "random_circuits": ("evaluation", "random_circuits"),
    "rivals": ("evaluation", "rivals"),
    "missed": ("evaluation", "missed"),
    "tests": ("evaluation", "tests"),
    "ground_truth": ("evaluation", "ground_truth"),
    "formats": ("export", "formats"),
    "labeler": ("labels", "labeler"),
    "corpus": ("labels", "corpus"),
}
# Tables whose keys are free: they are checked by the method or the task that reads them.
_OPEN = {("method",): ("method", "options")}
# Of these, one layer's value replaces the others' of the layers below it.
EXCLUSIVE = tuple(("selection", key) for key in ("edges", "nodes", "size", "threshold"))
_RANGES: dict[tuple[str, ...], tuple[float, float]] = {
    ("task", "limit"): (1, float("inf")),
    ("transcoders", "features"): (1, float("inf")),
    ("transcoders", "steps"): (1, float("inf")),
    ("transcoders", "tolerance"): (0, 1),
    ("ablating", "noise_scale"): (0, float("inf")),
    ("ablating", "learning_steps"): (1, float("inf")),
    ("selection", "edges"): (1, float("inf")),
    ("selection", "nodes"): (1, float("inf")),
    ("selection", "size"): (0, 1),
    ("selection", "reach"): (0, float("inf")),
    ("selection", "refine"): (0, float("inf")),
    ("selection", "min_stability"): (0, 1),
    ("selection", "resamples"): (0, float("inf")),
    ("selection", "reruns"): (0, float("inf")),
    ("selection", "seeds"): (1, float("inf")),
    ("evaluation", "holdout"): (0, 0.99),
    ("evaluation", "sizes"): (0, 1),
    ("evaluation", "bootstrap"): (0, float("inf")),
    ("evaluation", "random_circuits"): (0, float("inf")),
    ("evaluation", "rivals"): (0, float("inf")),
    ("evaluation", "missed"): (0, float("inf")),
    ("batch_size",): (1, float("inf")),
    ("seed",): (0, 2**63 - 1),
}

CONVENTIONS: dict[str, dict[tuple[str, ...], Any]] = {
    "textbook": {},
    "mib": {("model", "kv_heads"): "query", ("task", "bos"): "always"},
}
"""Defaults that a convention changes; the rest of it is done where `RunConfig.convention` is asked."""

Settings = dict[tuple[str, ...], Any]
"""Path of a key -> value, such as {("model", "dtype"): "float32"}: one layer of settings."""
Section = TypeVar("Section")


@cache
def known_paths() -> dict[tuple[str, ...], Any]:
    """Path of every setting -> its type."""

    def walk(cls: type, prefix: tuple[str, ...]) -> dict[tuple[str, ...], Any]:
        found: dict[tuple[str, ...], Any] = {}
        for name, kind in get_type_hints(cls).items():
            nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
            found.update(walk(kind, (*prefix, name)) if nested else {(*prefix, name): kind})
        return found

    return walk(RunConfig, ())


def resolve(table: Mapping[str, Any], where: str) -> Settings:
    """One layer of settings from a TOML table. Raises ConfigError naming `where`, an unknown key, and the nearest."""
    settings: Settings = {}

    def put(path: tuple[str, ...], value: Any) -> None:
        if path in settings:
            raise ConfigError(f"{where}: {'.'.join(path)} is given twice; leave one out")
        settings[path] = value

    sections = {path[0] for path in known_paths() if len(path) > 1}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in SHORTHAND and isinstance(value, str):
            put((name, SHORTHAND[name]), value)
        elif name in ALIASES:
            put(ALIASES[name], _typed(ALIASES[name], value, where))
        elif name in sections:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: {key} must be a table, not {value!r}")
            for path, item in _section(name, value, where):
                put(path, item)
        else:
            put((name,), _typed((name,), value, where))
    _check_exclusive(settings, where)
    return settings


def _section(section: str, table: Mapping[str, Any], where: str) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    free: dict[str, Any] = {}
    for key, value in table.items():
        path = (section, key.replace("-", "_"))
        if path in known_paths() and path not in _OPEN.values():
            found.append((path, _typed(path, value, where)))
        elif path in _OPEN.values() and isinstance(value, Mapping):
            free.update(value)
        elif (section,) in _OPEN:
            free[key.replace("-", "_")] = value
        else:
            raise _unknown(path, where)
    return found + ([(_OPEN[section,], free)] if free else [])


def _unknown(path: tuple[str, ...], where: str) -> ConfigError:
    known = [*(".".join(p) for p in known_paths()), *ALIASES, *{p[0] for p in known_paths()}]
    name = ".".join(path)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(path[-1], [k.rpartition(".")[2] for k in known], n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted({k[0] for k in known_paths()}))}"
    return ConfigError(f"{where}: unknown key {name!r}{hint}")


def _typed(path: tuple[str, ...], value: Any, where: str) -> Any:
    """`value` as the setting's type and within its range, else ConfigError."""
    kind = known_paths().get(path)
    if kind is None:
        raise _unknown(path, where)
    try:
        value = coerce(value, kind)
    except ValueError as error:
        raise ConfigError(f"{where}: {'.'.join(path)} must be {error}, not {value!r}") from None
    low, high = _RANGES.get(path, (float("-inf"), float("inf")))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ConfigError(f"{where}: {'.'.join(path)} must lie between {low:g} and {high:g}, not {number!r}")
    return value


def coerce(value: Any, kind: Any) -> Any:
    """`value` as the annotated type (lists become tuples, whole numbers floats). ValueError says what was wanted."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for option in arguments:
            if option is not type(None):
                try:
                    return coerce(value, option)
                except ValueError:
                    continue
        raise ValueError(_spell(kind))
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(coerce(item, arguments[0]) for item in value)
    elif origin is dict and isinstance(value, Mapping):
        return {str(key): item if arguments[1] is Any else coerce(item, arguments[1]) for key, item in value.items()}
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif origin is None and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(_spell(kind))


def _spell(kind: Any) -> str:
    """A type in words, for error messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(str(a) for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_spell(a) for a in arguments if a is not type(None))
    if origin is tuple:
        return f"a list ({_spell(arguments[0])} each)"
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return "a table" if origin is dict else words.get(kind, str(kind))


def _check_exclusive(settings: Settings, where: str) -> None:
    given = [".".join(path) for path in EXCLUSIVE if path in settings]
    if len(given) > 1:
        raise ConfigError(f"{where}: {' and '.join(given)} exclude each other; give one")


def build(*layers: Settings) -> RunConfig:
    """The configuration of several layers, later ones winning; options of methods and tasks are merged key by key.

    A size given in one layer (edges, size, threshold) replaces those of the layers below; a new method or task drops
    the options that a lower layer gave to another one.
    """
    merged: Settings = {}
    for layer in layers:
        if any(path in layer for path in EXCLUSIVE):
            merged = {path: value for path, value in merged.items() if path not in EXCLUSIVE}
        for chosen, options in ((("method", "name"), ("method", "options")), (("task", "source"), ("task", "options"))):
            if layer.get(chosen, merged.get(chosen)) != merged.get(chosen):
                merged.pop(options, None)
        for path, value in layer.items():
            merged[path] = {**merged.get(path, {}), **value} if isinstance(value, dict) else value
    return _fill(RunConfig, CONVENTIONS[merged.get(("convention",), "textbook")] | merged, ())


def _fill(cls: type[Section], settings: Settings, prefix: tuple[str, ...]) -> Section:
    values: dict[str, Any] = {}
    for name, kind in get_type_hints(cls).items():
        path = (*prefix, name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            values[name] = _fill(kind, settings, path)
        elif path in settings:
            values[name] = settings[path]
    return cls(**values)


def from_file(path: str | Path) -> Settings:
    """The settings of a TOML file. Raises ConfigError naming the file where it is not TOML or holds unknown keys."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    return resolve(table, str(path))


def from_assignments(assignments: list[str]) -> Settings:
    """The settings of `--set section.key=value` texts; values are TOML (`5`, `true`, `[1, 2]`), bare words texts."""
    table: dict[str, Any] = {}
    for text in assignments:
        name, equals, written = text.partition("=")
        keys = [key.strip() for key in name.split(".")]
        if not equals or not all(keys):
            raise ConfigError(f"--set {text}: write it as section.key=value, such as method.steps=5")
        try:
            value = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            value = written.strip()
        place = table
        for key in keys[:-1]:
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text}: {key} was given a value before")
        place[keys[-1]] = value
    return resolve(table, "--set")
