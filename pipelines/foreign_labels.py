"""`edgewise import-labels` and `edgewise export-labels`: names of features from and for Neuronpedia and Delphi."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.fingerprint import hash_file
from pipelines.label import draw_again, read_labels, write_labels
from pipelines.label_subject import subject_of
from pipelines.settings import ConfigError
from pipelines.store import EVIDENCE, EXPORTS, RunConflict, RunStore

if TYPE_CHECKING:
    from graphs.label import Label
    from graphs.node import NodeId
    from labelers.foreign import Imported

ForeignFormat = Literal["neuronpedia", "delphi"]
NEURONPEDIA_FILE, DELPHI_FOLDER = "labels.neuronpedia.jsonl", "labels.delphi"
"""Below the run's exports."""


@dataclass(frozen=True)
class Taken:
    """What an import came to."""

    labels: Mapping[NodeId, Label]
    """All labels of the run's features that came from the file."""
    unknown: int
    """Features of the file that are not in the run."""
    unnamed: tuple[NodeId, ...]
    """Features of the run that have no label, of the file or any other."""
    failures: Mapping[NodeId, str]
    """Features of the run of which the file says that there is no explanation; hostile."""
    can_be_scored: bool
    """Whether the run has the evidence that scores need."""
    written: tuple[Path, ...]
    """Files."""


def import_labels(directory: str | Path, place: str | Path, format: ForeignFormat, source: str | None) -> Taken:
    """Gives the run's features the labels that another tool wrote, in the place of those that they have, without scores.

    place: a file of Neuronpedia's, or a folder of Delphi's. source: which dictionary, where the file holds several of a
    layer. Raises ConfigError where nothing in it is of the run, and BadGraphFile naming the entry that cannot be read.
    """
    store = RunStore(directory)
    store.load()
    nodes = [node for node in subject_of(store).nodes if node.kind == "feature"]
    if not nodes:
        raise ConfigError(f"{store.directory} has no features: labels of other tools are of features")
    found = _read(Path(place), format, source)
    new = {node: found.labels[node] for node in nodes if node in found.labels}
    if not new:
        raise ConfigError(f"{place}: none of its {len(found.labels):,} labels is of a feature of {store.directory}")
    labels, facts = read_labels(store)
    labels |= new
    origin = {"file": Path(place).name, "format": format, "labels": len(new)}
    if Path(place).is_file():
        origin["sha256"] = hash_file(Path(place))
    path = write_labels(store, labels, {**facts, "imported": [*facts.get("imported", []), origin]})
    store.finish("labels", None)
    return Taken(
        new,
        len(found.labels) - len(new),
        tuple(node for node in nodes if node not in labels),
        {node: found.failures[node] for node in nodes if node in found.failures},
        store.finished(EVIDENCE),
        (path, *draw_again(store)),
    )


def _read(place: Path, format: ForeignFormat, source: str | None) -> Imported:
    if format == "delphi":
        from labelers.delphi_labels import read_delphi

        if not place.is_dir():
            raise ConfigError(f"{place} is no folder: Delphi writes one file for each explanation")
        return read_delphi(place, hookpoint=source)
    from labelers.neuronpedia_labels import read_neuronpedia

    if not place.is_file():
        raise ConfigError(f"{place} is no file: Neuronpedia's labels are JSON or JSON lines, gzipped or not")
    return read_neuronpedia(place.read_bytes(), source=source, where=str(place))


def export_labels(
    directory: str | Path, format: ForeignFormat, model: str | None, source: str | None
) -> tuple[Path, int]:
    """Writes the labels of the run's features below its exports; gives the file or folder and how many it holds.

    model: Neuronpedia's name of the model. source: Neuronpedia's of the dictionaries, without the layer, or Delphi's
    hookpoint, with {layer} in it. Labels that abstain are left out. Raises RunConflict where there is nothing to write.
    """
    store = RunStore(directory)
    store.load()
    labels = {node: label for node, label in read_labels(store)[0].items() if node.kind == "feature"}
    if not any(not label.abstain for label in labels.values()):
        raise RunConflict(f"{store.directory} has no labels of features: run edgewise label {store.directory} first")
    if format == "delphi":
        from labelers.delphi_labels import write_delphi

        files = write_delphi(labels, **({} if source is None else {"hookpoint": source}))
        store.clear(f"{EXPORTS}/{DELPHI_FOLDER}", "*.txt")
        for name, content in files.items():
            store.write_bytes(f"{EXPORTS}/{DELPHI_FOLDER}/{name}", content)
        return store.path(f"{EXPORTS}/{DELPHI_FOLDER}"), len(files)
    from labelers.neuronpedia_labels import write_neuronpedia

    content = write_neuronpedia(labels, model=model or "model", source=source or "edgewise")
    return store.write_bytes(f"{EXPORTS}/{NEURONPEDIA_FILE}", content), content.count(b"\n")
