"""The whole attribution graph as two files: `nodes.json`, the names of all nodes, and `adjacency.npz`, the rows.

`adjacency.npz` is what `scipy.sparse.save_npz` writes ([target, source], both in the order of nodes.json), with some arrays
more; `scipy.sparse.load_npz` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.sparse import csr_array

from graphs.attribution import AttributionGraph
from graphs.json_fields import BadGraphFile, check_distinct, node_of, read_object, take, texts_of

_NODES, _FILE = "nodes.json", "adjacency.npz"
_TYPES: dict[str, type[np.generic]] = {
    "data": np.float32,
    "absolute": np.float64,
    "rest": np.float64,
    "activations": np.float32,
    "target_weights": np.float64,
}
_COUNTED = ("indices", "indptr", "shape", "targets", "token_ids")


def nodes_json(graph: AttributionGraph) -> bytes:
    """The names of all nodes, in order, as a JSON list, one a line."""
    return ("[\n" + ",\n".join(json.dumps(str(node)) for node in graph.nodes) + "\n]\n").encode("utf-8")


def write_adjacency(graph: AttributionGraph, file: BufferedIOBase, compressed: bool = False) -> None:
    """Writes `adjacency.npz` to an open file, array by array, without a copy of any.

    Beside scipy's arrays it holds absolute, rest, activations, targets, target_weights, token_ids, and `about`, which is
    UTF-8 JSON with tokens, texts and facts.
    """
    about = {"tokens": graph.tokens, "texts": {str(n): t for n, t in graph.texts.items()}, "facts": dict(graph.facts)}
    arrays = {
        "indices": graph.weights.indices,
        "indptr": graph.weights.indptr,
        "format": np.array(b"csr"),
        "shape": np.array(graph.weights.shape),
        "data": graph.weights.data,
        "_is_array": np.array(True),
        "absolute": graph.absolute,
        "rest": graph.rest,
        "activations": graph.activations,
        "targets": graph.targets,
        "target_weights": graph.target_weights,
        "token_ids": np.array(graph.token_ids, dtype=np.int64),
        "about": np.frombuffer(json.dumps(about, allow_nan=False).encode("utf-8"), dtype=np.uint8),
    }
    save = np.savez_compressed if compressed else np.savez
    save(file, **arrays)


def read_adjacency(names: bytes | str, file: BufferedIOBase) -> AttributionGraph:
    """The graph whose nodes `nodes_json` and whose rows `write_adjacency` wrote. Raises BadGraphFile in one line."""
    nodes = _nodes(names)
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files if key in (*_TYPES, *_COUNTED, "about", "format")}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile, MemoryError, AttributeError) as error:
        raise BadGraphFile(f"not {_FILE}: {str(error)[:80] or type(error).__name__}") from None
    _check(arrays, len(nodes))
    about = read_object(arrays["about"].tobytes(), f"{_FILE} ('about')")
    texts = texts_of(about, "texts", _FILE)
    tokens = take(about, "tokens", list, _FILE)
    if not all(isinstance(token, str) for token in tokens) or len(tokens) != len(arrays["token_ids"]):
        raise BadGraphFile(f"{_FILE}: 'tokens' does not hold a text for each of the prompt's tokens")
    try:
        return AttributionGraph(
            nodes=nodes,
            weights=csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(len(nodes), len(nodes))),
            absolute=arrays["absolute"],
            rest=arrays["rest"],
            activations=arrays["activations"],
            targets=arrays["targets"],
            target_weights=arrays["target_weights"],
            token_ids=tuple(arrays["token_ids"].tolist()),
            tokens=tuple(tokens),
            texts={int(number): text for number, text in texts.items()},
            facts=take(about, "facts", dict, _FILE),
        )
    except ValueError as error:
        raise BadGraphFile(f"{_FILE}: {str(error)[:120]}") from None


def _nodes(names: bytes | str) -> tuple[Any, ...]:
    try:
        listed = json.loads(names)
    except (ValueError, RecursionError) as error:
        raise BadGraphFile(f"not {_NODES}: not JSON ({str(error)[:80]})") from None
    if not isinstance(listed, list):
        raise BadGraphFile(f"not {_NODES}: not a list of names")
    nodes = tuple(node_of(name, f"{_NODES}: entry {place}") for place, name in enumerate(listed))
    check_distinct(nodes, _NODES)
    return nodes


def _check(arrays: Mapping[str, np.ndarray], count: int) -> None:
    """Raises BadGraphFile unless the arrays are there, of their types and lengths, finite, and a matrix of `count` nodes."""
    for key in (*_TYPES, *_COUNTED, "about", "format"):
        if key not in arrays:
            raise BadGraphFile(f"{_FILE}: it has no array {key!r}")
    for key, kind in _TYPES.items():
        array = arrays[key]
        if array.dtype != kind or array.ndim != 1:
            raise BadGraphFile(f"{_FILE}: {key!r} is not a row of {kind.__name__}")
        if key != "activations" and not np.isfinite(array).all():
            raise BadGraphFile(f"{_FILE}: {key!r} holds numbers that are not finite")
    for key in _COUNTED:
        if arrays[key].dtype.kind not in "iu" or arrays[key].ndim != 1:
            raise BadGraphFile(f"{_FILE}: {key!r} is not a row of whole numbers")
    if arrays["about"].dtype != np.uint8 or arrays["format"].tobytes().rstrip(b"\0") != b"csr":
        raise BadGraphFile(f"{_FILE}: 'about' is not bytes, or 'format' not csr")
    if arrays["shape"].tolist() != [count, count]:
        raise BadGraphFile(f"{_FILE}: a matrix of shape {arrays['shape'].tolist()} for the {count} nodes of {_NODES}")
    indptr, indices = arrays["indptr"], arrays["indices"]
    steps = np.diff(indptr.astype(np.int64))
    if len(indptr) != count + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (steps < 0).any():
        raise BadGraphFile(f"{_FILE}: 'indptr' does not fit {count} rows of {len(indices)} entries")
    for key in ("indices", "targets"):
        if len(arrays[key]) and not (arrays[key].min() >= 0 and arrays[key].max() < count):
            raise BadGraphFile(f"{_FILE}: {key!r} names a node that {_NODES} does not have")
    lengths = {"data": len(indices), "target_weights": len(arrays["targets"])}
    lengths.update(absolute=count, rest=count, activations=count)
    for key, length in lengths.items():
        if len(arrays[key]) != length:
            raise BadGraphFile(f"{_FILE}: {key!r} holds {len(arrays[key])} numbers, not {length}")
