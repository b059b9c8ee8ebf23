"""Delphi's explanation files: a folder with one `{hookpoint}_latent{number}.txt` per feature, each a JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from graphs.json_fields import BadGraphFile
from graphs.label import Label
from graphs.node import NodeId
from labelers.foreign import Imported, choose_sources, foreign_label

_FILE = re.compile(r"(?P<hookpoint>.+)_(?:latent|feature)(?P<index>0|[1-9][0-9]{0,17})\.txt")
_NUMBER = re.compile(r"(?:^|\.)(0|[1-9][0-9]{0,8})(?=\.|$)")
_LARGEST = 1 << 20
NO_EXPLANATIONS = ("Explanation could not be parsed.", "No explanation found")
"""What Delphi writes in the place of an explanation that it could not get."""


def read_delphi(folder: Path, *, hookpoint: str | None = None) -> Imported:
    """Labels of features. What Delphi says of those that it could not explain is a failure, never a label.

    hookpoint: which one, such as layers.5.mlp, where the folder holds several of one layer. Raises BadGraphFile naming the
    file.
    """
    found = [(path, match) for path in sorted(folder.iterdir()) if (match := _FILE.fullmatch(path.name))]
    if not found:
        raise BadGraphFile(f"{folder}: no file is named like an explanation of Delphi's (layers.5.mlp_latent12.txt)")
    layers = {match["hookpoint"]: _layer(match["hookpoint"], path) for path, match in found}
    wanted = choose_sources(layers, hookpoint, "hookpoint", str(folder))
    labels: dict[NodeId, Label] = {}
    failures: dict[NodeId, str] = {}
    for path, match in found:
        if match["hookpoint"] not in wanted:
            continue
        node, text = NodeId("feature", layers[match["hookpoint"]], int(match["index"])), _explanation(path)
        if not text or text in NO_EXPLANATIONS:
            failures[node] = text or "the explanation is empty"
        else:
            labels[node] = foreign_label(node, text, "delphi", f"delphi:{match['hookpoint']}"[:80])
    return Imported(labels, failures)


def write_delphi(labels: Mapping[NodeId, Label], *, hookpoint: str = "layers.{layer}.mlp") -> dict[str, bytes]:
    """Content by file name, for every labelled feature; abstentions are left out.

    hookpoint: the name of a layer's hookpoint, with {layer} for its number. A label's description follows its text, as Delphi's
    explanations are sentences.
    """
    if "{layer}" not in hookpoint or "/" in hookpoint or "\\" in hookpoint:
        raise ValueError(f"the hookpoint {hookpoint[:60]!r} must hold {{layer}}, and no slash")
    files = {}
    for node, label in labels.items():
        if node.kind != "feature" or label.abstain or not label.text:
            continue
        name = f"{hookpoint.replace('{layer}', str(node.layer))}_latent{node.index}.txt"
        files[name] = json.dumps(": ".join(filter(None, (label.text, label.description)))).encode("ascii")
    return files


def _layer(hookpoint: str, path: Path) -> int:
    found = _NUMBER.search(hookpoint)
    if found is None:
        raise BadGraphFile(f"{path}: the hookpoint {hookpoint[:60]!r} holds no layer's number")
    return int(found[1])


def _explanation(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = json.loads(content) if len(content) <= _LARGEST else None
    except (ValueError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise BadGraphFile(f"{path}: not a JSON text of less than {_LARGEST >> 20} MiB")
    return text.strip()
