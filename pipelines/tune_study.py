"""The study behind `edgewise tune`: where it is stored, how many trials it still needs, and the loop of a worker."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.settings import ConfigError
from pipelines.store import RunConflict, first_difference
from pipelines.tune_config import OBJECTIVES

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

HEARTBEAT = 15
"""Seconds between two signs of life of a worker; after four without one its trial counts as lost and is run again."""
_RETRIES = 2
_PASSING = ("OperationalError", "ProgrammingError", "IntegrityError", "StorageInternalError")
"""Errors that may come from another worker who is making the tables."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a study is."""

    url: str
    """An Optuna (SQLAlchemy) URL; it may hold a password, so it is never shown or written down."""
    name: str
    """The study's name there."""
    heartbeat: int = HEARTBEAT
    """See HEARTBEAT."""

    @property
    def shown(self) -> str:
        """The kind of database, for messages."""
        return self.url.partition(":")[0]


class Surplus(Exception):
    """Raised in a trial that several workers began at once, beyond what was asked for."""


def open_study(place: Place, objectives: Sequence[str], identity: Mapping[str, Any]) -> Study:
    """The study, made if it is not there. Raises RunConflict where it was made with other settings, and ConfigError, in one
    line without the URL, where the database cannot be reached or its driver is missing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    with _quiet():
        study = _retried(place, lambda: _create(place, objectives))
    wanted = json.loads(json.dumps(identity))
    stored = study.user_attrs.get("identity")
    if stored is None:
        study.set_user_attr("identity", wanted)
    else:
        difference = first_difference(stored, wanted, "study")
        if difference:
            raise RunConflict(f"study {place.name!r} was made with another {difference}; give another --study or --out")
    return study


def _create(place: Place, objectives: Sequence[str]) -> Study:
    import optuna

    storage = optuna.storages.RDBStorage(
        place.url,
        engine_kwargs={"connect_args": {"timeout": 120}} if place.url.startswith("sqlite") else None,
        heartbeat_interval=place.heartbeat,
        grace_period=4 * place.heartbeat,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES),
    )
    # Optuna refuses pruners in studies of several objectives.
    single = len(objectives) == 1
    return optuna.create_study(
        storage=storage,
        study_name=place.name,
        directions=[OBJECTIVES[name].direction for name in objectives],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5) if single else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


def _retried(place: Place, make: Callable[[], Study]) -> Study:
    """What `make` gives; workers that set up one database at the same time disturb each other, so it is tried again."""
    for attempt in range(6):
        try:
            return make()
        except ImportError as error:
            driver = getattr(error, "name", None) or getattr(error.__cause__, "name", None) or "its driver"
            raise ConfigError(
                f"--storage {place.shown}: the Python package {driver!r} is missing; install it (pip install {driver})"
            ) from None
        except Exception as error:
            if not _of_the_database(error):
                raise
            if attempt == 5 or type(error).__name__ not in _PASSING:
                raise ConfigError(
                    f"--storage {place.shown}: the database cannot be used ({type(error).__name__}); check the URL, the "
                    "server and the rights of its user"
                ) from None
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("unreachable")


def _of_the_database(error: Exception) -> bool:
    """Whether an error comes from SQLAlchemy or from Optuna's use of it: its text may hold the URL."""
    return type(error).__module__.partition(".")[0] == "sqlalchemy" or type(error).__name__ == "StorageInternalError"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks that a part of it is experimental."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", category=_experimental())
        yield


def _experimental() -> type[Warning]:
    from optuna.exceptions import ExperimentalWarning

    return ExperimentalWarning


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that count: not those that a worker left behind when it died, nor surplus ones. Impossible ones count."""
    return [trial for trial in trials if trial.state.name != "FAIL" or "error" in trial.user_attrs]


def done(trials: Sequence[FrozenTrial]) -> int:
    """How many of the trials are over, complete, given up or impossible."""
    return sum(trial.state.is_finished() for trial in counted(trials))


def work(
    study: Study,
    target: int,
    run: Callable[[Trial, int], tuple[float, ...]],
    first: Callable[[int], Mapping[str, Any]],
    seed: int,
    deadline: float | None = None,
    tell: Callable[[Sequence[FrozenTrial]], None] | None = None,
) -> None:
    """Runs trials until the study has `target` of them, however many workers there are.

    A worker that finds none left waits for the others' trials, and takes over where one dies. run: a trial with its number,
    as in `run_trial`. first: parameters that a trial of a number must begin with. deadline: `time.monotonic()` after which
    no trial is begun. tell: is given all trials after each.
    """
    import optuna

    def objective(trial: Trial) -> tuple[float, ...]:
        before = [other for other in counted(study.get_trials(deepcopy=False)) if other.number < trial.number]
        if len(before) >= target:
            raise Surplus
        with _quiet():
            number = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(_frozen(study, trial))
            number = trial.number if number is None else number
            study.sampler = _sampler(seed, number, first(number))
        try:
            return run(trial, number)
        except (ValueError, RuntimeError, MemoryError) as error:
            if not isinstance(error, optuna.exceptions.OptunaError):
                trial.set_user_attr("error", _one_line(error))
                _log.info("trial %d: %s", number, error)
            raise

    while deadline is None or time.monotonic() < deadline:
        with _quiet():
            optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        if tell is not None:
            tell(trials)
        begun = [trial for trial in counted(trials) if trial.state.name != "WAITING"]
        if len(begun) < target:
            study.optimize(objective, n_trials=1, catch=(Surplus, ValueError, RuntimeError, MemoryError))
        elif all(trial.state.is_finished() for trial in begun):
            return
        else:
            time.sleep(0.5)


def _frozen(study: Study, trial: Trial) -> FrozenTrial:
    return next(other for other in study.get_trials(deepcopy=False) if other.number == trial.number)


def _sampler(seed: int, number: int, fixed: Mapping[str, Any]) -> Any:
    """TPE with a seed of the trial's own, so that no two workers draw the same."""
    import numpy as np
    import optuna

    own = int(np.random.default_rng([seed, number]).integers(2**31))
    sampler = optuna.samplers.TPESampler(seed=own, constant_liar=True)
    return optuna.samplers.PartialFixedSampler(dict(fixed), sampler) if fixed else sampler


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
