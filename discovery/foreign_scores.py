"""Scores that another tool wrote: EAP-IG's graph, as JSON or .pt (MIB's circuits are made of these)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphs.exporters.eap_ig import BadEapIgFile, EapIgGraph, read_eap_ig
from graphs.scores import EdgeScores
from graphs.topology import Topology


def read_scores(path: Path, topology: Topology) -> EdgeScores:
    """The file's scores of a model's edges; 1 and 0 where the file only says which edges are in the graph.

    Raises BadEapIgFile naming the file for one that cannot be read or belongs to another graph.
    """
    graph = read_graph(path)
    if not graph.topology.same_as(topology):
        raise BadEapIgFile(
            f"{path}: a graph of {graph.topology.edge_count:,} edges, this model's has {topology.edge_count:,} "
            "(these files have k and v slots per query head: try --kv-heads query)"
        )
    values = np.where(topology.possible, graph.kept, np.nan) if graph.scores is None else graph.scores
    return EdgeScores(topology, values.astype(np.float32), "file")


def read_graph(path: Path) -> EapIgGraph:
    """The graph of a .pt file, or of JSON in any other. Raises BadEapIgFile naming the file."""
    try:
        content = path.read_bytes()
        if path.suffix == ".pt":
            from discovery.eap_ig_pt import read_eap_ig_pt

            return read_eap_ig_pt(content)
        return read_eap_ig(content)
    except OSError as error:
        raise BadEapIgFile(f"{path}: {error.strerror}") from None
    except BadEapIgFile as error:
        raise BadEapIgFile(f"{path}: {error}") from None
