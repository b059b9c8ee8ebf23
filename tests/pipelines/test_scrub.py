"""`edgewise scrub` on a stored run of a tiny random model, and what cannot be scrubbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from discovery.prompt_groups import group_prompts
from discovery.task import BadTask
from discovery.task_source import load_task
from pipelines.cli import main


def write_task(path: Path, task_file: Path) -> None:
    """The pairs of a task file, cut to one length, with a column of nested groups."""
    rows = [json.loads(line) for line in task_file.read_text().splitlines()]
    rows = [row | {side: row[side][:5] for side in ("clean", "corrupt")} for row in rows]
    lines = [json.dumps(row | {"about": {"kind": ["even", "odd"][row["clean"][0] % 2]}}) for row in rows]
    path.write_text("\n".join(lines))


@pytest.fixture
def run(tmp_path: Path, model_directory: Path, task_file: Path) -> Path:
    task, out = tmp_path / "task.jsonl", tmp_path / "run"
    write_task(task, task_file)
    flags = "--method eap --edges 90 --sizes 1 --random-circuits 0 --rivals 0 --tests none --resamples 0 --labeler none"
    place = ["--model", str(model_directory), "--task", str(task), "--out", str(out)]
    assert main(["discover", *place, *flags.split()]) == 0
    return out


def test_scrub_writes_and_prints_what_it_finds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "evaluation.json").read_bytes()
    assert main(["scrub", str(run), "--groups", "about.kind", "--samples", "3"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "scrubbing.json").read_text())
    assert {"edges", "metric", "groups", "samples", "seed", "own", "grouped"} == set(found)
    assert found["own"]["alike"] == 1 < found["grouped"]["alike"]
    assert found["own"]["full"] == found["grouped"]["full"]
    assert found["own"]["pairs"] + found["own"]["alone"] == 7
    assert f"{found['own']['recovered']:.2f}" in printed and "prompts with the same 'about.kind'" in printed
    assert (run / "evaluation.json").read_bytes() == before
    first = (run / "scrubbing.json").read_bytes()
    assert main(["scrub", str(run), "--groups", "about.kind", "--samples", "3"]) == 0
    assert (run / "scrubbing.json").read_bytes() == first

    capsys.readouterr()
    for arguments, says in (
        (["--groups", "nowhere"], "'nowhere': is missing"),
        (["--samples", "0"], "samples must be at least 1"),
    ):
        assert main(["scrub", str(run), *arguments]) == 2
        assert says in capsys.readouterr().err


def test_groups_are_those_of_the_rows(tmp_path: Path, task_file: Path) -> None:
    path = tmp_path / "task.jsonl"
    write_task(path, task_file)
    task = load_task(str(path))
    found = group_prompts(task, str(path), "about.kind")
    assert [found[i] for i in range(24)] == [f'"{["even", "odd"][pair.clean[0] % 2]}"' for pair in task.pairs]
    assert group_prompts(task, str(path), "answer")[3] == frozenset(task.pairs[3].answers)
    with pytest.raises(BadTask, match="built-in task"):
        group_prompts(load_task("ioi", limit=4), "ioi", "city")
