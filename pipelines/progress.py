"""`edgewise progress`: one task over the checkpoints of a training run; when edges and circuits appear."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.checkpoints import Checkpoint, common_place
from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.discover import check_names, default_directory, discover
from pipelines.inputs import Inputs, read_task
from pipelines.progress_steps import Step, watch_step
from pipelines.settings import ConfigError
from pipelines.store import CIRCUIT, RunConflict, RunStore

if TYPE_CHECKING:
    from graphs.circuit import Circuit
    from graphs.node import EdgeId

RESULT, PICTURE = "progress.json", "progress.svg"
LAST, OWN = "last", "own"


@dataclass(frozen=True)
class ProgressRequest:
    """One command."""

    base: RunConfig
    """What all checkpoints have in common; `out` is the directory that gets a run directory for each."""
    checkpoints: tuple[Checkpoint, ...]
    """By step."""
    circuit: str = LAST
    """The edges that are watched: `last` (the last checkpoint's circuit), `own` (each checkpoint's), a run or a JSON file."""
    overwrite: bool = False
    """Whether runs of other settings in the directory are started anew."""


@dataclass(frozen=True)
class Progress:
    """What the command came to."""

    directory: Path
    """Where everything is."""
    content: dict[str, Any]
    """What progress.json holds."""
    written: tuple[Path, ...]
    """Files, those in the run directories left out."""

    @property
    def failed(self) -> list[dict[str, str]]:
        """Checkpoints without results, and why."""
        return self.content["failed"]


def progress(request: ProgressRequest) -> Progress:
    """Runs every checkpoint as `discover` does, watches one set of edges at all of them, writes progress.json and
    progress.svg.

    A checkpoint that cannot be used is left out and named. What is there already is kept: the same command goes on from
    where it was stopped, and takes new checkpoints in. Raises ConfigError where no checkpoint can be used, RunConflict for a
    directory that holds runs of other settings.
    """
    base = request.base
    _check(base)
    listed = _listed_edges(request.circuit)
    directory = _directory(request)
    failed: list[dict[str, str]] = []
    steps = _discover_all(request, directory, failed)
    steps = _of_one_graph(steps, failed)
    circuit, origin = _circuit(request.circuit, listed, steps)
    steps = _watch_all(steps, circuit, failed)
    return _write(request, directory, steps, circuit, origin, failed)


def _check(base: RunConfig) -> None:
    """Refuses settings that no checkpoint could be compared under, before anything slow happens."""
    check_names(base)
    if base.transcoders.name is not None:
        raise ConfigError(
            "progress compares edges between checkpoints, and features are not the same: leave out features"
        )
    _ = Inputs(base, read_task(base), Clock()).metric


def _directory(request: ProgressRequest) -> Path:
    if request.base.out:
        return Path(request.base.out)
    model = dataclasses.replace(request.base.model, name=common_place(request.checkpoints))
    return default_directory(dataclasses.replace(request.base, model=model), "progress")


def _listed_edges(circuit: str) -> frozenset[EdgeId] | None:
    """The edges of a run or a file; None for `last` and `own`. Raises ConfigError or ValueError where they cannot be read."""
    from graphs.ground_truth import read_ground_truth

    if circuit in (LAST, OWN):
        return None
    path = Path(circuit) / CIRCUIT if Path(circuit).is_dir() else Path(circuit)
    if not path.exists():
        raise ConfigError(
            f"--circuit {circuit}: there is no {path} (give {LAST}, {OWN}, a run directory or a JSON file)"
        )
    return read_ground_truth(path)


def _discover_all(request: ProgressRequest, directory: Path, failed: list[dict[str, str]]) -> list[Step]:
    """An ordinary run for every checkpoint. One whose metric tells nothing (yet) has scores and no circuit."""
    from tqdm import tqdm

    from discovery.measure import FlatMetric

    steps = []
    for checkpoint in tqdm(request.checkpoints, desc="checkpoints", unit="run"):
        model = dataclasses.replace(request.base.model, name=checkpoint.model, revision=checkpoint.revision)
        config = dataclasses.replace(request.base, model=model, out=str(directory / checkpoint.name))
        try:
            discover(config, request.overwrite)
        except RunConflict:
            raise
        except (ValueError, OSError, ImportError) as error:
            store = RunStore(directory / checkpoint.name)
            if not isinstance(error, FlatMetric) or not _has_scores(store):
                failed.append({"checkpoint": checkpoint.name, "reason": str(error)})
                continue
        store = RunStore(directory / checkpoint.name)
        store.load()
        steps.append(Step(checkpoint, config, store))
    if not steps:
        raise ConfigError(f"no checkpoint can be used: {failed[0]['checkpoint']}: {failed[0]['reason']}")
    return steps


def _has_scores(store: RunStore) -> bool:
    try:
        store.load()
    except RunConflict:
        return False
    return store.finished("scores")


def _of_one_graph(steps: Sequence[Step], failed: list[dict[str, str]]) -> list[Step]:
    """The steps with their scores and circuits read, those on another graph than the last circuit's left out."""
    circuits = [step.read_circuit() for step in steps]
    last = next((circuit for circuit in reversed(circuits) if circuit is not None), None)
    if last is None:
        raise ConfigError(
            "at no checkpoint does the metric tell clean prompts from ablated ones, so there is no circuit to watch: use "
            "prompts whose corruption changes the answer, or another metric"
        )
    found = []
    for step, circuit in zip(steps, circuits, strict=True):
        try:
            if circuit is not None and not circuit.topology.same_as(last.topology):
                raise ConfigError("its graph is another one than the last checkpoint's: they cannot be compared")
            scores = step.store.read_scores(last.topology)
        except ValueError as error:
            failed.append({"checkpoint": step.checkpoint.name, "reason": str(error)})
            continue
        found.append(dataclasses.replace(step, scores=scores, own=circuit))
    return found


def _circuit(kind: str, listed: frozenset[EdgeId] | None, steps: Sequence[Step]) -> tuple[Circuit | None, str]:
    """The fixed circuit (None: each checkpoint's own), and what it is called."""
    from graphs.circuit import Circuit
    from graphs.compare import edge_mask

    if kind == OWN:
        return None, "its own circuit at each step"
    if listed is not None:
        scores = steps[-1].scores
        assert scores is not None  # read by `_of_one_graph`
        topology = scores.topology
        return Circuit(topology, edge_mask(topology, listed)), f"the circuit of {kind}"
    place = next((step for step in reversed(steps) if step.own is not None and step.own.edge_count), None)
    if place is None or place.own is None:
        raise ConfigError("no checkpoint's circuit has a path from the input to the logits: ask for more edges")
    return Circuit(place.own.topology, place.own.kept), f"the circuit of {place.checkpoint.name}"


def _watch_all(steps: Sequence[Step], circuit: Circuit | None, failed: list[dict[str, str]]) -> list[Step]:
    from tqdm import tqdm

    found = []
    for step in tqdm(steps, desc="losses", unit="checkpoint", delay=1):
        try:
            found.append(dataclasses.replace(step, found=watch_step(step, circuit)))
        except (ValueError, OSError, ImportError) as error:
            failed.append({"checkpoint": step.checkpoint.name, "reason": str(error)})
    if not found:
        raise ConfigError(f"no checkpoint can be used: {failed[0]['checkpoint']}: {failed[0]['reason']}")
    return found


def _write(
    request: ProgressRequest,
    directory: Path,
    steps: Sequence[Step],
    circuit: Circuit | None,
    origin: str,
    failed: list[dict[str, str]],
) -> Progress:
    from graphs.step_figure import step_figure_svg
    from pipelines.progress_content import content_of, figure_of

    place = common_place(request.checkpoints)
    name = place if request.checkpoints[0].revision is not None else Path(place).name
    content = content_of(steps, circuit, origin, name, failed)
    store = RunStore(directory)
    written = (
        store.write_json(RESULT, content),
        store.write_bytes(PICTURE, step_figure_svg(figure_of(content))),
    )
    return Progress(directory, content, written)
