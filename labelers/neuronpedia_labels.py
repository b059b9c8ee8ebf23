"""Feature labels of Neuronpedia: its exports (JSON lines, gzipped or not), lists of explanations, and answers of its API."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from graphs.json_fields import BadGraphFile, objects
from graphs.label import Label
from graphs.node import NodeId
from labelers.foreign import Imported, choose_sources, foreign_label

LARGEST = 1 << 30
"""Bytes that a file may hold once unpacked."""
TYPE = "edgewise"
"""`typeName` of what we write."""
_SOURCE = re.compile(r"(0|[1-9][0-9]{0,8})(?:-.*)?")
_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")


def read_neuronpedia(content: bytes, *, source: str | None = None, where: str = "Neuronpedia labels") -> Imported:
    """Labels of features. Of several explanations of a feature the first that says something counts.

    content: a JSON list or lines of {modelId, layer, index, description, ...}, or features with their `explanations`, as
    the API gives them; gzipped or not. source: which `layer`, such as 20-gemmascope-transcoder-16k, where a file holds
    several of one layer. where: the file's name, for errors. Raises BadGraphFile naming the entry.
    """
    rows = list(_explanations(_entries(_unpacked(content, where), where), where))
    layers = {row["layer"]: _layer(row["layer"], place) for place, row in rows}
    wanted = choose_sources(layers, source, "source", where)
    labels: dict[NodeId, Label] = {}
    empty: dict[NodeId, str] = {}
    for place, row in rows:
        if row["layer"] not in wanted:
            continue
        node = NodeId("feature", layers[row["layer"]], _index(row.get("index"), place))
        if not row["description"].strip():
            empty[node] = "the description is empty"
        elif node not in labels:
            labeler = row.get("explanationModelName") or "neuronpedia"
            labels[node] = foreign_label(
                node, row["description"], str(labeler), f"neuronpedia:{row.get('typeName', '')}"[:80]
            )
    return Imported(labels, {node: reason for node, reason in empty.items() if node not in labels})


def write_neuronpedia(labels: Mapping[NodeId, Label], *, model: str, source: str) -> bytes:
    """JSON lines as Neuronpedia's exports hold them, one for each labelled feature; abstentions are left out.

    model: Neuronpedia's name of the model. source: what follows the layer's number in its names, such as
    gemmascope-transcoder-16k.
    """
    lines = []
    for node, label in sorted(labels.items(), key=lambda item: (item[0].layer or 0, item[0].index or 0)):
        if node.kind != "feature" or label.abstain or not label.text:
            continue
        row = {
            "modelId": model,
            "layer": f"{node.layer}-{source}",
            "index": str(node.index),
            "description": label.text,
            "typeName": TYPE,
            "explanationModelName": label.labeler,
        }
        lines.append(json.dumps(row) + "\n")
    return "".join(lines).encode("ascii")


def _unpacked(content: bytes, where: str) -> str:
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise BadGraphFile(f"{where}: more than {LARGEST >> 20} MiB")
        return content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error):
        raise BadGraphFile(f"{where}: a broken gzip file") from None
    except UnicodeDecodeError:
        raise BadGraphFile(f"{where}: not UTF-8 text") from None


def _entries(text: str, where: str) -> Iterator[tuple[str, Any]]:
    """Every entry with its place: of a list, of lines, or one alone."""
    whole = _parsed(text)
    if isinstance(whole, list):
        yield from ((f"{where}: entry {number}", entry) for number, entry in enumerate(whole))
    elif whole is not None:
        yield where, whole
    else:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield f"{where}: line {number}", _parsed(line)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _explanations(entries: Iterator[tuple[str, Any]], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Flat explanations: a feature's own ones get its layer and index."""
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise BadGraphFile(f"{place} is not a JSON object")
        inner = objects(entry, "explanations", place) if "explanations" in entry else [entry]
        for row in inner:
            row = {**{key: entry.get(key) for key in ("layer", "index")}, **row}
            for key in ("layer", "description"):
                if not isinstance(row.get(key), str):
                    raise BadGraphFile(f"{place}: {key!r} is missing or not a text")
            yield place, row


def _layer(source: str, place: str) -> int:
    found = _SOURCE.fullmatch(source)
    if found is None:
        raise BadGraphFile(f"{place}: 'layer' is {source[:60]!r}, which does not begin with a layer's number")
    return int(found[1])


def _index(value: Any, place: str) -> int:
    if isinstance(value, bool) or not _INDEX.fullmatch(str(value)):
        raise BadGraphFile(f"{place}: 'index' is {str(value)[:40]!r}, not a feature's number")
    return int(value)
