"""`edgewise train-transcoders`: a directory that reads back, goes on, and is told again."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from discovery.transcoder_source import load_transcoders
from pipelines.cli import main


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """30 documents of random token ids."""
    rng = random.Random(0)
    rows = [{"tokens": [rng.randint(3, 40) for _ in range(rng.randint(8, 30))]} for _ in range(30)]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["per-layer", "cross-layer"])
def test_a_directory_that_reads_back(
    kind: str, model_directory: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ["train-transcoders", "--model", str(model_directory), "--corpus", str(corpus), "--device", "cpu"]
    command += [
        "--kind",
        kind,
        "--k",
        "4",
        "--features",
        "30",
        "--steps",
        "6",
        "--batch-tokens",
        "32",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    first = capsys.readouterr().out
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    found = load_transcoders(out)
    assert len(found) == len(record["held_out"]["layers"]) == 3
    assert found.cross_layer == (kind == "cross-layer")
    assert all(one.features == 30 for one in found)
    assert not list(out.glob("*checkpoint*"))
    assert f"mean FVU {record['held_out']['mean_fvu']:.4f}" in first
    assert record["held_out"]["documents"] == 3
    assert main(command) == 0
    assert "was finished before" in capsys.readouterr().out
    assert main([*command, "--seed", "1"]) == 2
    assert "settings.seed (0, now 1)" in capsys.readouterr().err


def test_what_is_missing_is_said(model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train-transcoders", "--model", str(model_directory), "--device", "cpu"]) == 2
    assert "--corpus is needed" in capsys.readouterr().err
