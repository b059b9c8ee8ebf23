"""Checkpoints of a training run: found from folders, patterns or hub revisions, and put in the order of their steps."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipelines.settings import ConfigError

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:([kKmMbB])(?![A-Za-z]))?")
_AFTER_WORD = re.compile(
    r"(?:step|checkpoint|ckpt|iter|iteration|epoch|update)s?[-_=.]*" + _NUMBER.pattern, re.IGNORECASE
)
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Checkpoint:
    """One state of a model in training."""

    name: str
    """What tells it from the others, such as step1000: its run directory is called so."""
    step: float | int
    """Its place in training: the number in the name."""
    model: str
    """Directory or hub name."""
    revision: str | None = None
    """Branch, tag or commit of a hub name."""


def step_of(name: str) -> float | int:
    """The number of steps in a name: after a word such as step, checkpoint, ckpt, iter or epoch where there is one, else the
    last number; 123k, 123M and 2B are thousands, millions and billions. Raises ConfigError where there is none."""
    found = _AFTER_WORD.findall(name) or _NUMBER.findall(name)
    if not found:
        raise ConfigError(f"checkpoint {name!r} has no number: its name must tell the step, such as step1000")
    digits, unit = found[-1]
    value = float(digits) * _TIMES[unit.lower()]
    return int(value) if value.is_integer() else value


def folder_checkpoints(places: Sequence[str]) -> tuple[Checkpoint, ...]:
    """The checkpoints in these directories, by step; a place with * ? or [ stands for the directories that it matches.

    Raises ConfigError for places that are no directories, names without a number, and two with one step.
    """
    folders: list[Path] = []
    for place in places:
        if Path(place).is_dir():
            folders.append(Path(place))
        elif glob.has_magic(place):
            matched = [Path(each) for each in sorted(glob.glob(place, recursive=True)) if Path(each).is_dir()]
            if not matched:
                raise ConfigError(f"--models {place}: no directory is called so")
            folders += matched
        elif not Path(place).exists():
            raise ConfigError(f"--models {place}: there is no such directory")
    folders = list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
    if not folders:
        raise ConfigError(f"--models {places[0]}: a file, not a directory of a model")
    return _ordered([Checkpoint(name, step_of(name), str(folder)) for folder, name in zip(folders, _names(folders))])


def _names(folders: Sequence[Path]) -> list[str]:
    """What tells the directories apart: the last part of their paths that differs."""
    parts = [folder.resolve().parts for folder in folders]
    if len(folders) == 1:
        return [parts[0][-1]]
    for place in range(1, min(map(len, parts)) + 1):
        names = [each[-place] for each in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError("--models: the directories need names of their own at one depth, such as run/step1 and run/step2")


def hub_checkpoints(model: str, revisions: str) -> tuple[Checkpoint, ...]:
    """The named revisions (with commas between) of a hub model, by step. Raises ConfigError as `folder_checkpoints`."""
    names = list(dict.fromkeys(filter(None, map(str.strip, revisions.split(",")))))
    if not names:
        raise ConfigError("--revisions needs at least one name, such as step1000,step2000")
    if Path(model).is_dir():
        raise ConfigError(f"--revisions: {model} is a directory, which has none; give its checkpoints by --models")
    return _ordered([Checkpoint(name.replace("/", "-"), step_of(name), model, name) for name in names])


def _ordered(found: list[Checkpoint]) -> tuple[Checkpoint, ...]:
    ordered = sorted(found, key=lambda one: one.step)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise ConfigError(
                f"checkpoints {one.name!r} and {other.name!r} are both of step {one.step:,}: leave one out"
            )
    return tuple(ordered)


def common_place(checkpoints: Sequence[Checkpoint]) -> str:
    """What the checkpoints have in common, for titles: the hub name, or the directory that holds them."""
    if checkpoints[0].revision is not None:
        return checkpoints[0].model
    folders = [Path(one.model).resolve() for one in checkpoints]
    shared = folders[0].parent
    while not all(folder.is_relative_to(shared) for folder in folders):
        shared = shared.parent
    return str(shared)
