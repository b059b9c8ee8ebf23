"""EAP-IG's graph as a .pt file: the same content as the JSON form, and nothing in it is run."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from discovery.eap_ig_pt import read_eap_ig_pt, write_eap_ig_pt
from discovery.foreign_scores import read_graph, read_scores
from graphs.exporters.eap_ig import BadEapIgFile, EapIgGraph, read_eap_ig, write_eap_ig
from graphs.topology import transformer_topology


def graph(scores: bool = True) -> EapIgGraph:
    """Two layers of three heads."""
    rng = np.random.default_rng(0)
    topology = transformer_topology(2, 3)
    values = np.where(topology.possible, rng.normal(size=topology.possible.shape), np.nan).astype(np.float32)
    neurons = rng.normal(size=(len(topology.sources), 4)).astype(np.float32)
    kept = topology.possible & (values > 0.2)
    if not scores:
        return EapIgGraph(topology, 4, kept, np.asarray(kept.any(1)))
    return EapIgGraph(topology, 4, kept, np.asarray(kept.any(1)), values, neurons[:, 0].copy(), neurons > 0, neurons)


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def loaded(one: EapIgGraph) -> dict[str, Any]:
    return torch.load(io.BytesIO(write_eap_ig_pt(one)), weights_only=True)


@pytest.mark.parametrize("scores", [True, False])
def test_both_forms_hold_the_same(scores: bool) -> None:
    one = graph(scores)
    for found in (read_eap_ig_pt(write_eap_ig_pt(one)), read_eap_ig(write_eap_ig(one))):
        assert found.cfg == one.cfg
        for field in ("kept", "nodes", "scores", "node_scores", "neurons", "neuron_scores"):
            np.testing.assert_array_equal(getattr(found, field), getattr(one, field), err_msg=field)


def test_fields_are_those_that_the_peer_asks_for() -> None:
    content = loaded(graph())
    names = {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"}
    assert set(content) == names | {"nodes_scores", "neurons_in_graph", "neurons_scores"}
    assert content["edges_scores"].shape == content["edges_in_graph"].shape == (9, 21)
    assert content["edges_in_graph"].dtype == torch.bool
    assert not content["edges_scores"].isnan().any()
    assert content["dst_nodes"][:4] == ["a0.h0<q>", "a0.h1<q>", "a0.h2<q>", "a0.h0<k>"]
    assert content["src_nodes"][:2] == ["input", "a0.h0"]


class Hostile:
    """Would make a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    for content in (saved({"cfg": Hostile(trap)}), pickle.dumps(Hostile(trap))):
        with pytest.raises(BadEapIgFile, match="tensors and plain data"):
            read_eap_ig_pt(content)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dst_nodes": ["logits"]}, "dst_nodes"),
        ({"edges_in_graph": torch.ones(9, 21, dtype=torch.bool)}, "cannot be"),
        ({"edges_in_graph": torch.ones(3)}, "edges_in_graph"),
        ({"edges_scores": "x"}, "edges_scores is str"),
        ({"neurons_scores": torch.ones(9, 7)}, "neurons_scores"),
        ({"cfg": {"n_layers": 2}}, "n_heads"),
    ],
    ids=["names", "impossible", "shape", "text", "width", "cfg"],
)
def test_a_wrong_field_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadEapIgFile, match=says):
        read_eap_ig_pt(saved(loaded(graph()) | change))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a file"], ids=["empty", "zip", "text"])
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(BadEapIgFile, match="tensors and plain data"):
        read_eap_ig_pt(content)


def test_scores_of_a_file_belong_to_one_graph(tmp_path: Path) -> None:
    one = graph()
    assert one.scores is not None
    (tmp_path / "graph.pt").write_bytes(write_eap_ig_pt(one))
    (tmp_path / "bare.json").write_bytes(write_eap_ig(graph(False)))
    np.testing.assert_array_equal(read_scores(tmp_path / "graph.pt", one.topology).values, one.scores)
    bare = read_scores(tmp_path / "bare.json", one.topology).values
    np.testing.assert_array_equal(bare[one.topology.possible], one.kept[one.topology.possible])
    with pytest.raises(BadEapIgFile, match=r"graph\.pt: a graph of .*--kv-heads query"):
        read_scores(tmp_path / "graph.pt", transformer_topology(2, 3, 1))
    with pytest.raises(BadEapIgFile, match=r"none\.json: No such file"):
        read_graph(tmp_path / "none.json")
