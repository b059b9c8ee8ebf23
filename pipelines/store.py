"""Run directories: the only place of the project that writes results to disk. Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from graphs.scores import EdgeScores
from graphs.topology import Topology

if TYPE_CHECKING:
    from discovery.ablation import Ablation

CONFIG, RUN, SCORES, CIRCUIT, EVALUATION, EXPORTS, EVALUATIONS, NODES, ADJACENCY, GRAPH, VALIDATION, FEATURES = (
    "config.toml",
    "run.json",
    "scores.safetensors",
    "circuit.json",
    "evaluation.json",
    "exports",
    "evaluations",
    "nodes.json",
    "adjacency.npz",
    "graph.json",
    "validation.json",
    "features.json",
)
DRAWS = "draws.safetensors"
UNFINISHED, PIECES = "unfinished.npz", "unfinished.pieces"
UNFINISHED_RERUNS = "unfinished_reruns.npz"
LABELS, EVIDENCE, GROUPS, STORY = "labels.json", "evidence", "groups.json", "story.json"
CONSTANTS = "constants.safetensors"
NODE_ARRAYS = "nodes.safetensors"
TASK_GRAPH, CONTRAST = "task_graph.json", "contrast.json"
_EXTRA_SCORES = {"stderr": np.float32, "kept": np.bool_, "exact": np.bool_, "bound": np.float32, "rank_by": np.float32}
"""What scores may hold beside their values, and as what it is stored."""
IDENTITY = ("edgewise", "config", "inputs")
"""What of run.json must agree for results on disk to be reused."""


class RunConflict(ValueError):
    """A run directory that holds results of other settings, inputs or versions, or files that cannot be read."""


class RunStore:
    """One run directory.

    A step's result counts as finished when run.json says so; that line is written after the result. A run that was
    stopped therefore resumes at the first step without one.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.run: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        """Where a file of this run is."""
        return self.directory / name

    def open(self, identity: Mapping[str, Any], config_toml: str, overwrite: bool = False) -> None:
        """Makes the directory, or checks that what it holds came from the same settings, inputs and version.

        identity: values of IDENTITY, as JSON holds them. Raises RunConflict naming the first difference, or a file of
        another origin that would be overwritten. With `overwrite` the run starts anew instead.
        """
        identity = json.loads(json.dumps(identity))
        stored = self._stored_run() if self.directory.exists() else None
        if stored is None and not overwrite:
            for name in (CONFIG, SCORES, CIRCUIT, EVALUATION, EXPORTS, NODES, ADJACENCY, GRAPH, FEATURES):
                if self.path(name).exists():
                    raise RunConflict(f"{self.path(name)} is not of a run of edgewise: choose another --out")
        if stored is not None and not overwrite:
            for key in IDENTITY:
                difference = first_difference(stored.get(key), identity[key], key)
                if difference:
                    way_out = "choose another --out, or give --overwrite"
                    raise RunConflict(f"{self.directory} holds a run with another {difference}; {way_out}")
            self.run = stored
            if config_toml and not self.path(CONFIG).exists():
                self.write_text(CONFIG, config_toml)
            return
        if stored is not None:
            self._drop_results()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.run = {**identity, "seconds": {}, "finished": []}
        self._write_run()
        if config_toml:
            self.write_text(CONFIG, config_toml)

    def _drop_results(self) -> None:
        """Removes what another run left, its record first, so that no mixture of two runs can be read."""
        for path in (
            RUN,
            SCORES,
            DRAWS,
            CIRCUIT,
            EVALUATION,
            NODES,
            NODE_ARRAYS,
            ADJACENCY,
            GRAPH,
            VALIDATION,
            FEATURES,
            LABELS,
            GROUPS,
            STORY,
            UNFINISHED,
            UNFINISHED_RERUNS,
            PIECES,
            CONSTANTS,
        ):
            self.path(path).unlink(missing_ok=True)
        for folder in (EXPORTS, EVALUATIONS, EVIDENCE):
            self.clear(folder, "*")

    def clear(self, folder: str, pattern: str = "*.json") -> None:
        """Removes the files of a folder of the run."""
        for path in self.path(folder).glob(pattern):
            path.unlink()

    def load(self) -> None:
        """Reads the run.json of an existing run. Raises RunConflict where there is none."""
        stored = self._stored_run()
        if stored is None:
            raise RunConflict(f"{self.directory} is not a run directory (it has no {RUN})")
        self.run = stored

    def _stored_run(self) -> dict[str, Any] | None:
        try:
            stored = json.loads(self.path(RUN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunConflict(f"{self.path(RUN)} is not JSON: {error}") from None
        if not isinstance(stored, dict) or not isinstance(stored.get("finished"), list):
            raise RunConflict(f"{self.path(RUN)} is not the record of a run")
        return stored

    def finished(self, step: str) -> bool:
        """Whether a step's result is on disk."""
        return step in self.run["finished"]

    def finish(self, step: str, seconds: float | None, **facts: Any) -> None:
        """Records that a step is done, how long it took (None keeps what stands) and facts such as peak memory."""
        if seconds is not None:
            self.run["seconds"][step] = round(seconds, 4)
        if step not in self.run["finished"]:
            self.run["finished"].append(step)
        self.run.update(facts)
        self._write_run()

    def note(self, seconds: Mapping[str, float], **facts: Any) -> None:
        """Records times of steps that leave no result behind (loading the model, ...) and facts."""
        self.run["seconds"].update({step: round(value, 4) for step, value in seconds.items()})
        self.run.update(facts)
        self._write_run()

    def _write_run(self) -> None:
        self.write_json(RUN, self.run)

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file of the run."""
        return self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file of the run; numbers that JSON does not have become null."""
        return self.write_text(name, json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the run. Raises RunConflict naming the file where it cannot be read."""
        try:
            return json.loads(self.path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunConflict(f"{self.path(name)} cannot be read: {error}") from None

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Writes a file of the run: first beside its place, then moved there in one step."""
        return self.write_stream(name, lambda file: file.write(content))

    def write_stream(self, name: str, write: Callable[[BufferedIOBase], Any]) -> Path:
        """Like `write_bytes`, for content that is too large to hold: `write` puts it into the open file."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    def write_constants(self, ablation: Ablation) -> Path:
        """constants.safetensors: the constants of an optimal ablation, so that nothing is learned twice."""
        from discovery.constants_file import constants_to_bytes

        path = self.write_bytes(CONSTANTS, constants_to_bytes(ablation))
        self.finish("constants", None)
        return path

    def write_scores(self, scores: EdgeScores, task: str) -> Path:
        """scores.safetensors: `values` [src, dst] float32 with NaN where no edge is possible, and what else is known."""
        values = np.where(scores.topology.possible, scores.values, np.nan).astype(np.float32)
        tensors = {"values": values}
        for name, kind in _EXTRA_SCORES.items():
            extra = getattr(scores, name)
            if extra is not None:
                tensors[name] = np.asarray(extra, kind)
        metadata = {
            "sources": json.dumps([str(node) for node in scores.topology.sources]),
            "targets": json.dumps([str(slot) for slot in scores.topology.targets]),
            "task": task,
            "method": scores.method,
            "facts": json.dumps(_finite(scores.facts)),
        }
        return self.write_bytes(SCORES, save_tensors(tensors, metadata))

    def write_draws(self, draws: Mapping[str, np.ndarray]) -> None:
        """draws.safetensors: for `resamples` and `seeds`, where there are any, scores of the possible edges [draw edge]."""
        if draws:
            self.write_bytes(DRAWS, save_tensors(dict(draws)))
        else:
            self.path(DRAWS).unlink(missing_ok=True)

    def read_draws(self) -> dict[str, np.ndarray]:
        """What `write_draws` wrote. Raises RunConflict where it cannot be read."""
        if not self.path(DRAWS).exists():
            return {}
        try:
            return load_tensors(self.path(DRAWS).read_bytes())
        except Exception as error:  # safetensors raises an Exception of its own
            raise RunConflict(f"{self.path(DRAWS)} cannot be read: {error}") from None

    def read_scores(self, topology: Topology) -> EdgeScores:
        """The stored scores. Raises RunConflict where they belong to another graph."""
        content = self.path(SCORES).read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__", {})
        for key, nodes in (("sources", topology.sources), ("targets", topology.targets)):
            if json.loads(metadata.get(key, "[]")) != [str(node) for node in nodes]:
                raise RunConflict(f"{self.path(SCORES)}: the {key} are not those of this model")
        tensors = load_tensors(content)
        extra: dict[str, Any] = {name: tensors[name] for name in _EXTRA_SCORES if name in tensors}
        facts = json.loads(metadata.get("facts", "{}"))
        return EdgeScores(topology, tensors["values"], metadata["method"], facts=facts, **extra)


def first_difference(stored: Any, wanted: Any, name: str) -> str | None:
    """In words, the first place where two JSON values differ, such as `config.seed (1, now 0)`; None: they agree."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted({*stored, *wanted}):
            difference = first_difference(stored.get(key), wanted.get(key), f"{name}.{key}")
            if difference:
                return difference
        return None
    return None if stored == wanted else f"{name} ({_short(stored)}, now {_short(wanted)})"


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _finite(value: Any) -> Any:
    """The value without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
