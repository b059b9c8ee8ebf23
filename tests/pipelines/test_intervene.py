"""`edgewise intervene` from end to end, on a tiny random model and on the embedded one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.json"
    path.write_text('{"tokens": [5, 9, 14, 3, 22, 31, 8]}')
    return path


def test_a_prompt(
    model_directory: Path, transcoders: Path, prompt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main([
        "intervene", str(prompt), "--model", str(model_directory), "--transcoders", str(transcoders), "--out", str(out),
        "--set", "f0.*@2=0", "--set", "f1.3@-1+=2", "--set", "e2=0", "--generate", "3", "--top", "5",
    ])  # fmt: skip
    assert code == 0
    shown = capsys.readouterr().out
    for word in ("before", "frozen attention", "live", "f1.3@-1", "KL from before", "generated"):
        assert word in shown
    stored = json.loads((out / "intervene.json").read_text())
    assert [token["id"] for token in stored["tokens"]] == [5, 9, 14, 3, 22, 31, 8]
    assert stored["divergence"]["none"] > 0
    assert len(stored["generated"]["none"]["ids"]) <= 3
    assert stored["request"]["interventions"] == ["f0.*@2=0", "f1.3@-1+=2", "e2=0"]


def test_a_task_with_swaps(
    model_directory: Path, transcoders: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main([
        "intervene", "--task", str(task_file), "--model", str(model_directory), "--transcoders", str(transcoders),
        "--out", str(out), "--set", "f0.*=swap", "--set", "a1.h0=mean", "--freeze", "none",
        "--setting", "evaluation.bootstrap=20",
    ])  # fmt: skip
    assert code == 0
    assert "24 pairs" in capsys.readouterr().out
    stored = json.loads((out / "intervene.json").read_text())
    assert set(stored["runs"]) == {"before", "none"}
    run = stored["runs"]["none"]
    assert run["change_low"] <= run["change"] <= run["change_high"]
    assert len(stored["per_pair"]["none"]) == 24


def test_a_direction_is_made_stored_and_used_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the embedded model, with text prompts."""
    for name, lines in (
        ("a.txt", "Tom gave a book to\nAnna gave a ring to\n"),
        ("b.txt", "The capital of France is\n"),
    ):
        (tmp_path / name).write_text(lines)
    out, again = tmp_path / "out", tmp_path / "again"
    difference = ("--difference", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"))
    assert main(["intervene", "Tom gave", *difference, "--vector", "r2", "--out", str(out)]) == 0
    direction = out / "direction.safetensors"
    assert main(["intervene", "Tom gave", "--direction", str(direction), "--vector", "r2", "--out", str(again)]) == 0
    first, second = (json.loads((folder / "intervene.json").read_text()) for folder in (out, again))
    assert first["next"] == second["next"]
    assert first["divergence"]["none"] > 0
    assert "r2 projected out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--set", "f0=0"], "'f0=0'"),
        (["x", "--set", "a1.h0=swap"], "no donor"),
        (["x", "--set", "a1.h0=mean"], "--mean-over"),
        (["x", "--set", "a1.h0@99=0"], "a1.h0@99=0"),
        (["x", "--set", "a77.h0=0"], "layers 0 to 3"),
        (["x"], "nothing to do"),
        ([], "PROMPT or --task"),
        (["x", "--add", "2", "--set", "m0=0"], "--add needs a direction"),
        (["x", "--direction", "nowhere.safetensors"], "nowhere.safetensors"),
        (["x", "--set", "f0.1=0", "--transcoders", "/nowhere"], "/nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["intervene", *arguments, *(["--out", str(tmp_path / "out")] if arguments else [])]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgewise:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
