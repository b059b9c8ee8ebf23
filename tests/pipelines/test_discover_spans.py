"""`edgewise discover --spans` from task file to pictures, in this process, on a tiny random model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from graphs.exporters.circuit_json import read_circuit
from pipelines.cli import main

QUICK = ("--bootstrap", "20", "--rivals", "2", "--random-circuits", "1", "--sizes", "0.05,0.3,1", "--edges", "60")


@pytest.fixture(scope="module")
def spanned_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 pairs of token ids with a name of one or two tokens, in every second pair of another length in the corrupt prompt."""
    path = tmp_path_factory.mktemp("task") / "names.jsonl"
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randint(3, 40) for _ in range(count)]

    rows = []
    for number in range(20):
        before, after = ids(2), ids(rng.randint(2, 3))
        names = ids(1), ids(1 + number % 2)
        right, wrong = rng.sample(range(3, 41), 2)
        places = [[2, 2 + len(name)] for name in names]
        rows.append(
            {
                "clean": [*before, *names[0], *after],
                "corrupt": [*before, *names[1], *after],
                "answers": [right],
                "wrong_answers": [wrong],
                "spans": {"name": dict(zip(("clean", "corrupt"), places))},
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def command(model_directory: Path, spanned_task: Path, tmp_path: Path) -> list[str]:
    named = {"--model": model_directory, "--task": spanned_task, "--out": tmp_path / "run"}
    return ["discover", *(str(part) for pair in named.items() for part in pair), *QUICK]


def test_a_run_over_spans_is_drawn_resumed_and_judged_again(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*command, "--spans", "task"]) == 0
    assert "nodes at 4 spans: start, name, after_name, end" in capsys.readouterr().out
    circuit = read_circuit((run / "circuit.json").read_bytes())
    names = {node.position for node in circuit.topology.sources}
    assert names == {"start", "name", "after_name", "end"}
    assert str(circuit.topology.targets[-1]) == "logits"
    drawn = (run / "exports" / "circuit.svg").read_text(encoding="utf-8")
    assert all(str(edge.source) in drawn for edge, _ in circuit.edges[:5])
    assert load_file(run / "scores.safetensors")["values"].shape == circuit.topology.possible.shape
    assert main([*command, "--spans", "task"]) == 0
    assert "(stored)" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--ablation", "mean", "--sizes", "0.1,1"]) == 0
    assert "100 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more", [("--ablation", "mean"), ("--ablation", "mean-span", "--spans", "task")], ids=["mean", "mean-span"]
)
def test_prompts_of_unequal_length_need_no_spans_where_nothing_is_aligned(
    command: list[str], more: tuple[str, ...]
) -> None:
    assert main([*command, *more]) == 0


def test_positions_are_spans(model_directory: Path, tmp_path: Path) -> None:
    rows = [
        {"clean": [5, 6 + i, 7, 8], "corrupt": [5, 9 + i, 7, 8], "answers": [11], "wrong_answers": [12]}
        for i in range(6)
    ]
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ["--model", str(model_directory), "--task", str(task), "--out", str(tmp_path / "run"), *QUICK]
    assert main(["discover", *arguments, "--spans", "positions"]) == 0
    topology = read_circuit((tmp_path / "run" / "circuit.json").read_bytes()).topology
    assert {node.position for node in topology.sources} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "--spans task"),
        (("--ablation", "mean-span"), "needs spans"),
        (("--spans", "positions"), "different numbers of tokens"),
        (("--spans", "task", "--transcoders", "x"), "spans do not go together with features"),
        (("--spans", "task", "--edges", "100000"), "the graph has"),
    ],
    ids=["no spans", "mean", "positions", "features", "too many edges"],
)
def test_what_cannot_be_used_is_named_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert main([*command, *more]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("edgewise: ") and message in shown


def test_validate_says_which_spans_there_are(
    model_directory: Path, spanned_task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["validate", str(spanned_task), "--model", str(model_directory)]
    assert main(named) == 0
    assert "20 pairs, 10 can be run" in capsys.readouterr().out
    assert main([*named, "--spans", "task"]) == 0
    out = capsys.readouterr().out
    assert "20 pairs, 20 can be run" in out and "spans: start (2 tokens); name (1 token); after_name" in out
    assert main([*named, "--ablation", "mean"]) == 0
    assert "20 pairs, 20 can be run" in capsys.readouterr().out
    assert main([*named, "--spans", "positions"]) == 0
    assert "--spans positions needs the same of all" in capsys.readouterr().out
