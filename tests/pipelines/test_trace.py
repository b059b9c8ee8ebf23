"""`edgewise trace` from end to end: one prompt, many prompts, resumed runs, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import load_npz

from graphs.adjacency import read_adjacency
from graphs.attribution_json import read_graph
from pipelines.cli import main
from pipelines.trace_task import changed_spans

TOKENS = [5, 9, 14, 3, 22, 31, 8]


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.json"
    path.write_text(json.dumps({"tokens": TOKENS, "targets": [4, 30]}))
    return path


def run(prompt: object, model: Path, transcoders: Path, out: Path, *more: str) -> int:
    return main([
        "trace", str(prompt), "--model", str(model), "--transcoders", str(transcoders), "--out", str(out), *more
    ])  # fmt: skip


def test_the_run_directory(
    prompt: Path, model_directory: Path, transcoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    formats = ("--formats", "svg,dot,graphml,neuronpedia,json")
    assert run(prompt, model_directory, transcoders, out, "--keep", "1", "--validate", "3", *formats) == 0
    shown = capsys.readouterr().out
    for word in ("replacement", "completeness", "closure", "exactness", "interventions", "heads", "logit4@6"):
        assert word in shown
    names = json.loads((out / "nodes.json").read_text())
    matrix = load_npz(out / "adjacency.npz")
    assert matrix.shape == (len(names), len(names))
    with (out / "adjacency.npz").open("rb") as file:
        whole = read_adjacency((out / "nodes.json").read_bytes(), file)
    assert whole.token_ids == tuple(TOKENS)  # nothing is put in front of a file's ids
    assert names[-2:] == ["logit4@6", "logit30@6"]
    assert np.diff(matrix.tocsr().indptr)[-2:].min() > 0
    graph = read_graph((out / "graph.json").read_bytes())
    assert graph.facts["closure"] < 1e-4
    assert graph.facts["validation"]["exactness"]["within"] == graph.facts["validation"]["exactness"]["edges"] > 0
    for place, parts in graph.through.items():
        assert sum(parts.values()) == pytest.approx(float(graph.weights[place]), rel=1e-3, abs=1e-4)
    assert len(graph.through) == len(graph.edges)
    attended = graph.facts["attention"][0]
    assert sum(pair["value"] for pair in attended["pairs"]) + attended["rest"] == pytest.approx(
        attended["score"], abs=1e-4
    )
    exported = sorted(path.name for path in (out / "exports").iterdir())
    assert exported == ["graph.dot", "graph.graphml", "graph.json", "graph.neuronpedia.json", "graph.svg"]


def test_a_stopped_run_goes_on(
    prompt: Path, model_directory: Path, transcoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def stop(*args: object, **options: object) -> None:
        raise ValueError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr("graphs.influence.prune", stop)
        assert run(prompt, model_directory, transcoders, out, "--validate", "2") == 2
    assert (out / "adjacency.npz").exists() and not (out / "graph.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr("discovery.attribution.attribution_graph", stop)
        patch.setattr("discovery.graph_validation.validate_graph", stop)
        assert run(prompt, model_directory, transcoders, out, "--validate", "2") == 0
    first = (out / "graph.json").read_bytes()
    assert run(prompt, model_directory, transcoders, out, "--validate", "2") == 0
    assert (out / "graph.json").read_bytes() == first
    assert run(prompt, model_directory, transcoders, out, "--validate", "2", "--keep", "0.5") == 2


def test_targets_and_bias_nodes(prompt: Path, model_directory: Path, transcoders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("--targets", "logit(3) - logit(9)", "--bias-nodes", "--keep", "1", "--validate", "0", "--no-split-heads")
    assert run(prompt, model_directory, transcoders, out, *more) == 0
    names = json.loads((out / "nodes.json").read_text())
    assert names[-1] == "logit3-logit9@6" and "own" in names and "b2@6" in names
    with (out / "adjacency.npz").open("rb") as file:
        whole = read_adjacency((out / "nodes.json").read_bytes(), file)
    assert whole.weights.sum(1)[-1] == pytest.approx(float(whole.activations[-1]), rel=1e-4)


def test_a_task(
    task_file: Path, model_directory: Path, transcoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = [
        "trace", "--task", str(task_file), "--limit", "4", "--model", str(model_directory), "--transcoders", str(transcoders),
        "--out", str(out), "--align", "changed", "--max-features", "30",
    ]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "4 prompts" in shown and "clean less corrupt, 4 pairs" in shown
    assert len(list((out / "prompts").iterdir())) == 8
    stored = json.loads((out / "contrast.json").read_text())
    assert any("@changed" in str(node) for node in stored["nodes"])
    for name in ("task_graph.svg", "contrast.svg"):
        assert (out / "exports" / name).read_bytes().startswith(b"<svg")
    (out / "prompts" / "0003-corrupt.json").unlink()
    before = (out / "contrast.json").read_bytes()
    assert main(arguments) == 0
    assert (out / "contrast.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "more", "said"),
    [
        ('{"tokens": [5, 99]}', (), "vocabulary"),
        ('{"tokens": []}', (), "tokens"),
        ('{"tokens": [5, 9], "targets": ["x"]}', (), "vocabulary ids"),
        ('{"tokens": [5, 9, 4]}', ("--targets", "logit(77)"), "ends at 40"),
        ('{"tokens": [5, 9, 4]}', ("--targets", "f0.1@0"), "not an active feature"),
        ('{"tokens": [5, 9, 4]}', ("--keep", "2"), "--keep 2.0"),
        ('{"tokens": [5, 9, 4]}', ("--formats", "xyz"), "xyz"),
    ],
)
def test_mistakes_are_one_line(
    content: str,
    more: tuple[str, ...],
    said: str,
    model_directory: Path,
    transcoders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "ids.json"
    path.write_text(content)
    assert run(path, model_directory, transcoders, tmp_path / "run", *more) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert said in told[-1] and told[-1].startswith("edgewise: ")


def test_text_needs_a_tokenizer(
    model_directory: Path, transcoders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("Once upon a time", model_directory, transcoders, tmp_path / "run") == 2
    assert "no tokenizer" in capsys.readouterr().err


def test_spans_by_what_a_pair_changes() -> None:
    assert list(changed_spans([1, 2, 3, 4, 5, 6], [1, 2, 9, 4, 8, 6], "clean").values()) == [
        "first", "before", "changed", "between", "changed_2", "last",
    ]  # fmt: skip
    clean, corrupt = [1, 2, 3, 3, 7, 6], [1, 2, 9, 7, 6]
    assert list(changed_spans(clean, corrupt, "clean").values()) == [
        "first",
        "before",
        "changed",
        "changed",
        "after",
        "last",
    ]
    assert list(changed_spans(clean, corrupt, "corrupt").values()) == ["first", "before", "changed", "after", "last"]
