"""The flags of `edgewise import-labels` and `edgewise export-labels`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.foreign_labels import Taken

FORMATS = ("neuronpedia", "delphi")
IMPORT_EPILOG = """\
neuronpedia: a file of explanations as Neuronpedia exports them or its API answers (JSON or JSON lines, gzipped or not).
delphi: a folder with one {hookpoint}_latent{number}.txt for each explanation. Labels of features that the run does not have are
passed over. They take the place of the names that the features have, keep their origin in labels.json, and have no scores until
edgewise score RUN --judge openai tests them; edgewise label RUN names everything anew."""
EXPORT_EPILOG = """\
Labels go to exports/labels.neuronpedia.jsonl (one line for each feature) or exports/labels.delphi/ (one file for each)."""


def add_import_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise import-labels` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory whose graph has features")
    parser.add_argument("place", metavar="FILE", help="Neuronpedia's file, or Delphi's folder")
    parser.add_argument("--format", choices=FORMATS, default="neuronpedia", help="whose (default: neuronpedia)")
    parser.add_argument(
        "--source", metavar="NAME", help="which dictionary, where the file holds several of a layer, as it names them"
    )


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise export-labels` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory with labels of features")
    parser.add_argument("--format", choices=FORMATS, default="neuronpedia", help="for whom (default: neuronpedia)")
    parser.add_argument("--model-id", metavar="ID", help="what Neuronpedia calls the model (default: model)")
    parser.add_argument(
        "--source",
        metavar="NAME",
        help="neuronpedia: of the dictionaries, behind the layer (default: edgewise); delphi: the hookpoint, with {layer} "
        "in it (default: layers.{layer}.mlp)",
    )


def import_summary(taken: Taken) -> str:
    """What came in, what did not, what to do next, and the files."""
    from graphs.escape import shorten

    lines = [
        f"{label.node}  {shorten(label.text, 60)}  ({shorten(label.labeler, 40)})" for label in taken.labels.values()
    ]
    lines.append(
        f"{len(taken.labels):,} features named by the file; {taken.unknown:,} of its labels are not of this run"
    )
    if taken.failures:
        node, why = next(iter(taken.failures.items()))
        lines.append(f"{len(taken.failures)} have no explanation there, such as {node}: {shorten(why, 80)}")
    if taken.unnamed:
        lines.append(f"{len(taken.unnamed)} features of the run have no name, such as {taken.unnamed[0]}")
    if not taken.can_be_scored:
        lines.append("to test the names, run edgewise label first (it collects the evidence) and import again")
    return "\n".join([*lines, *(f"wrote {path}" for path in taken.written)])
