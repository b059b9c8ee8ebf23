"""`edgewise tune`: many settings tried on one model and task; the best ones as a table, a picture and files to run."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig
from pipelines.discover import default_directory
from pipelines.fingerprint import hash_settings
from pipelines.settings import ConfigError
from pipelines.store import RunStore
from pipelines.tune_bench import Bench
from pipelines.tune_config import TuneConfig
from pipelines.tune_front import Entry, entries, front, judge_unseen, recommended
from pipelines.tune_space import make_space
from pipelines.tune_study import Place, counted, done, open_study, work

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

CACHE, DATABASE, RESULT, PICTURE, BEST, FRONT = "cache", "study.db", "tune.json", "pareto.svg", "best.toml", "front"


@dataclass(frozen=True)
class TuneRequest:
    """One command."""

    base: RunConfig
    """What all trials have in common; `out` is the study's directory."""
    tune: TuneConfig
    """The search."""
    storage: str | None = None
    """Optuna URL; None: an SQLite file in the directory."""
    study: str | None = None
    """The study's name; None: from the settings."""


@dataclass(frozen=True)
class Tuned:
    """What a study came to."""

    directory: Path
    """Where it is written."""
    found: tuple[Entry, ...]
    """All complete trials."""
    best: tuple[Entry, ...]
    """The front, judged on pairs that no trial saw."""
    baseline: Entry | None
    """The random trial, judged likewise."""
    chosen: Entry
    """The one to start with."""
    counts: Mapping[str, int]
    """Trials by how they ended: complete, pruned, impossible."""
    objectives: tuple[str, ...]
    """The study's."""
    notes: tuple[str, ...]
    """What is to be said besides."""
    written: tuple[Path, ...]
    """Files."""


def tune(request: TuneRequest) -> Tuned:
    """Brings the study to as many trials as are wanted, then judges its front on pairs that no trial saw and writes it.

    The same command goes on from where it was stopped, and several may work on one study at a time. Raises ValueError (in
    one line) for settings, files, models and databases that cannot be used.
    """
    base, wanted = request.base, request.tune
    space = make_space(base, wanted)
    directory = Path(base.out) if base.out else default_directory(base, "tune")
    base = dataclasses.replace(base, out=None)
    request = dataclasses.replace(request, base=base)
    bench = Bench(base, wanted, space.ablations, directory / CACHE)
    _ = bench.inputs.metric  # refuses an unknown name before anything is written
    known = {**bench.identity(), "tune": {**wanted.identity(), "methods": space.methods, "ablations": space.ablations}}
    directory.mkdir(parents=True, exist_ok=True)
    name = request.study or "edgewise-" + hash_settings(known)
    place = Place(request.storage or f"sqlite:///{(directory / DATABASE).resolve()}", name)
    study = open_study(place, wanted.objectives, known)
    deadline = None if wanted.timeout is None else time.monotonic() + wanted.timeout
    if wanted.workers == 1:
        with _bar(wanted.trials) as tell:
            _work(study, request, bench, deadline, tell)
        notes: tuple[str, ...] = ()
    else:
        notes = _in_processes(study, request, directory, place, deadline)
    return _conclude(study, request, bench, directory, notes)


def _work(study: Study, request: TuneRequest, bench: Bench, deadline: float | None, tell: Any = None) -> None:
    from pipelines.tune_trial import run_trial

    space = make_space(request.base, request.tune)

    def run(trial: Trial, number: int) -> tuple[float, ...]:
        return run_trial(bench, space, trial, number)

    work(study, request.tune.trials, run, space.first, request.base.seed, deadline, tell)


@contextmanager
def _bar(target: int) -> Iterator[Any]:
    """A progress bar over trials, and what brings it up to date."""
    from tqdm import tqdm

    with tqdm(total=target, desc="tune", unit="trial") as bar:

        def tell(trials: Sequence[FrozenTrial]) -> None:
            bar.n = min(done(trials), target)
            bar.refresh()

        yield tell
        bar.refresh()


def _in_processes(
    study: Study, request: TuneRequest, directory: Path, place: Place, deadline: float | None
) -> tuple[str, ...]:
    """Workers in processes of their own; this one shows how far they are. Gives a note for each that died."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
    workers = [
        context.Process(target=_worker, args=(request, directory, place, seconds), name=f"tune-{number}")
        for number in range(request.tune.workers)
    ]
    with _environment(request.tune.workers):
        for worker in workers:
            worker.start()
    try:
        with _bar(request.tune.trials) as tell:
            while any(worker.is_alive() for worker in workers):
                tell(study.get_trials(deepcopy=False))
                for worker in workers:
                    worker.join(0.5 / len(workers))
            tell(study.get_trials(deepcopy=False))
    except KeyboardInterrupt:
        for worker in workers:
            worker.join(10)
        raise
    dead = [worker for worker in workers if worker.exitcode]
    if len(dead) == len(workers):
        raise ConfigError(f"all {len(dead)} workers stopped (exit code {dead[0].exitcode}); --workers 1 shows why")
    return tuple(f"a worker stopped with exit code {worker.exitcode}; the others took over" for worker in dead)


@contextmanager
def _environment(workers: int) -> Iterator[None]:
    """What workers find in their environment: their share of the cores, and no bars of their own."""
    share = str(max(1, (os.cpu_count() or 1) // workers))
    added = {key: value for key, value in (("OMP_NUM_THREADS", share), ("TQDM_DISABLE", "1")) if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]


def _worker(request: TuneRequest, directory: Path, place: Place, seconds: float | None) -> None:
    """A worker process."""
    deadline = None if seconds is None else time.monotonic() + seconds
    space = make_space(request.base, request.tune)
    bench = Bench(request.base, request.tune, space.ablations, directory / CACHE)
    known = {
        **bench.identity(),
        "tune": {**request.tune.identity(), "methods": space.methods, "ablations": space.ablations},
    }
    try:
        _work(open_study(place, request.tune.objectives, known), request, bench, deadline)
    except KeyboardInterrupt:
        sys.exit(130)


def _conclude(study: Study, request: TuneRequest, bench: Bench, directory: Path, notes: tuple[str, ...]) -> Tuned:
    from pipelines.tune_picture import picture

    trials, objectives = study.get_trials(deepcopy=False), request.tune.objectives
    found = entries(trials)
    best = front(found, objectives)
    first = next((entry for entry in found if entry.baseline), None)
    judged = judge_unseen(bench, (*best, *([first] if first else [])), request.base.evaluation.bootstrap)
    best, baseline = judged[: len(best)], judged[-1] if first else None
    chosen = recommended(best, request.base.selection.reach)
    states = [trial.state.name for trial in counted(trials)]
    counts = {
        "complete": states.count("COMPLETE"),
        "pruned": states.count("PRUNED"),
        "impossible": states.count("FAIL"),
        "unfinished": states.count("RUNNING") + states.count("WAITING"),
    }
    reasons = tuple(dict.fromkeys(str(trial.user_attrs["error"]) for trial in trials if "error" in trial.user_attrs))
    store = RunStore(directory)
    title = f"{bench.inputs.describe_task()['name']} in {bench.inputs.describe_model()['name']}"
    content = {
        "title": title,
        "objectives": list(objectives),
        "counts": counts,
        "pairs": {
            "scored": bench.inputs.train.pair_count,
            "validation": bench.inputs.held_out.pair_count,
            "unseen": len(bench.inputs.unseen),
        },
        "front": [entry.to_json() for entry in best],
        "baseline": None if baseline is None else baseline.to_json(),
        "chosen": chosen.number,
        "impossible": list(reasons),
        "trials": [entry.to_json() for entry in found],
    }
    store.clear(FRONT, "*.toml")
    written = [
        store.write_json(RESULT, content),
        store.write_bytes(PICTURE, picture(title, found, best, baseline, objectives)),
        *(store.write_text(f"{FRONT}/{entry.number:04d}.toml", as_file(entry, bench, objectives)) for entry in best),
        store.write_text(BEST, as_file(chosen, bench, objectives)),
    ]
    return Tuned(directory, found, best, baseline, chosen, counts, objectives, (*notes, *reasons), tuple(written))


def as_file(entry: Entry, bench: Bench, objectives: Sequence[str]) -> str:
    """The settings of an entry with what was measured in front: `edgewise discover` runs the file."""
    numbers = ", ".join(f"{name} {_short(entry.found[name])}" for name in dict.fromkeys((*objectives, "faithfulness")))
    lines = [f"# trial {entry.number} of edgewise tune; on its validation pairs: {numbers}"]
    if entry.unseen is not None:
        lines.append(f"# faithfulness on {len(bench.inputs.unseen)} pairs that no trial saw: "
                     f"{_short(entry.unseen['faithfulness'])}")  # fmt: skip
    if entry.run.ablation != bench.config.ablation:
        judge = bench.config.ablation
        lines.append(
            f"# scored under {entry.run.ablation}, judged under {judge}: edgewise evaluate RUN --ablation {judge}"
        )
    return re.sub(r"[^\n\x20-\x7e]", "?", "\n".join(lines)) + "\n" + entry.config


def _short(value: float | int) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"
