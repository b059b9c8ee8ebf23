"""EAP-IG's graph as a .pt file (hannamw/EAP-IG, `Graph.to_pt`): tensors and plain data, read without running anything."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphs.exporters.eap_ig import BadEapIgFile, EapIgGraph, topology_of

_FIELDS = ("cfg", "src_nodes", "dst_nodes", "edges_in_graph", "nodes_in_graph")


def write_eap_ig_pt(graph: EapIgGraph) -> bytes:
    """The file as EAP-IG writes it. Scores of impossible edges are zero, as they are there."""
    topology = graph.topology
    content: dict[str, Any] = {
        "cfg": graph.cfg,
        "src_nodes": list(topology.source_names),
        "dst_nodes": list(topology.target_names),
    }
    if graph.scores is not None:
        content["edges_scores"] = torch.from_numpy(np.where(topology.possible, graph.scores, 0).astype(np.float32))
    content |= {"edges_in_graph": torch.from_numpy(graph.kept), "nodes_in_graph": torch.from_numpy(graph.nodes)}
    for name, values in (
        ("nodes_scores", graph.node_scores),
        ("neurons_in_graph", graph.neurons),
        ("neurons_scores", graph.neuron_scores),
    ):
        if values is not None:
            content[name] = torch.from_numpy(values)
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def read_eap_ig_pt(content: bytes) -> EapIgGraph:
    """The graph of a .pt file. Raises BadEapIgFile naming the field for anything but tensors and plain data."""
    try:
        with warnings.catch_warnings():  # of pickle's protocol, for files that are refused all the same
            warnings.simplefilter("ignore")
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadEapIgFile(f"not a .pt file of tensors and plain data ({reason[:120]})") from None
    if not isinstance(data, Mapping) or any(field not in data for field in _FIELDS):
        missing = ", ".join(field for field in _FIELDS if not isinstance(data, Mapping) or field not in data)
        raise BadEapIgFile(f"not EAP-IG's: it lacks {missing}")
    topology, d_model = topology_of(data["cfg"])
    for field, names in (("src_nodes", topology.source_names), ("dst_nodes", topology.target_names)):
        if list(data[field]) != list(names):
            raise BadEapIgFile(f"{field} are not the nodes that 'cfg' describes")
    shape = topology.possible.shape
    kept = _tensor(data, "edges_in_graph", shape, np.bool_)
    assert kept is not None
    if (kept & ~topology.possible).any():
        row, column = np.argwhere(kept & ~topology.possible)[0]
        raise BadEapIgFile(f"edges_in_graph: {topology.source_names[row]}->{topology.target_names[column]} cannot be")
    scores = _tensor(data, "edges_scores", shape, np.float32)
    if scores is not None:
        scores = np.where(topology.possible, scores, np.nan).astype(np.float32)
    nodes = _tensor(data, "nodes_in_graph", shape[:1], np.bool_)
    assert nodes is not None
    return EapIgGraph(
        topology,
        d_model,
        kept,
        nodes,
        scores,
        _tensor(data, "nodes_scores", shape[:1], np.float32),
        _tensor(data, "neurons_in_graph", (shape[0], d_model), np.bool_),
        _tensor(data, "neurons_scores", (shape[0], d_model), np.float32),
    )


def _tensor(data: Mapping[str, Any], field: str, shape: tuple[int | None, ...], dtype: type) -> np.ndarray | None:
    """A field as an array; None where it is absent."""
    value = data.get(field)
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.is_sparse or tuple(value.shape) != shape:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadEapIgFile(f"{field} is {found}, not a tensor of shape {shape}")
    return (value.bool() if dtype is np.bool_ else value.float()).numpy()
