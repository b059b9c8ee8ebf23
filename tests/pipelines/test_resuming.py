"""Scores that were killed on their way: `edgewise discover` goes on where they were and ends as if nothing had happened."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from discovery.methods import acdc
from graphs.exporters.circuit_json import read_circuit
from pipelines.cli import main
from pipelines.store import PIECES, SCORES, UNFINISHED, RunStore
from pipelines.stored_pieces import StoredPieces

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "--rivals",
    "0",
    "--tests",
    "none",
    "--random-circuits",
    "0",
    "--bootstrap",
    "0",
    "--sizes",
    "1",
    "--labeler",
    "none",
)
IMPATIENT = """import sys, discovery.journal
discovery.journal._SECONDS_BETWEEN = 0
from pipelines.cli import main
sys.exit(main(sys.argv[1:]))"""


def kill_when(arguments: list[str], ready: Callable[[], bool], folder: Path) -> None:
    """Starts the command and kills it as soon as `ready`."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not ready() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.fixture
def command(model_directory: Path, task_file: Path) -> Callable[..., list[str]]:
    def made(out: Path, *more: str) -> list[str]:
        named = [
            "discover",
            "--model",
            str(model_directory),
            "--task",
            str(task_file),
            "--edges",
            "30",
            "--out",
            str(out),
        ]
        return [*named, "--limit", "6", "--batch-size", "2", "--formats", "json", *QUICK, *more]

    return made


def same_scores(one: Path, other: Path) -> None:
    found, expected = (load_file(folder / SCORES) for folder in (one, other))
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], expected[name])
    assert (one / "circuit.json").read_bytes() == (other / "circuit.json").read_bytes()


def test_exact_goes_on_from_its_finished_runs(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--method", "exact", "--set", "method.edges_per_run=4")
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    file, puts = stopped / PIECES, []
    kill_when(command(stopped, *more), lambda: file.exists() and file.stat().st_size > 5000, tmp_path)
    known = len(StoredPieces(RunStore(stopped))._places)
    assert known > 3 and not (stopped / SCORES).exists()
    put = StoredPieces.put
    monkeypatch.setattr(StoredPieces, "put", lambda self, *piece: (puts.append(piece[0]), put(self, *piece))[1])
    assert main(command(stopped, *more)) == 0
    after = len(puts)
    puts.clear()
    assert main(command(whole, *more)) == 0
    assert known + after == len(puts) == len(set(puts))
    assert not file.exists()
    same_scores(stopped, whole)


def test_acdc_goes_on_from_its_decisions(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more, stopped, whole = (
        ("--method", "acdc", "--set", "method.screen=false"),
        tmp_path / "stopped",
        tmp_path / "whole",
    )
    file = stopped / UNFINISHED

    def decided() -> bool:
        return file.exists() and int(np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)["done"]) > 20

    kill_when(command(stopped, *more), decided, tmp_path)
    assert file.exists() and not (stopped / SCORES).exists()
    known, left = int(np.load(file, allow_pickle=False)["done"]), []
    prune = acdc.prune_in_order

    def counted(judge: Any, graph: Any, order: list, *rest: Any) -> Any:
        left.append(len(order))
        return prune(judge, graph, order, *rest)

    monkeypatch.setattr(acdc, "prune_in_order", counted)
    assert main(command(stopped, *more)) == 0 and main(command(whole, *more)) == 0
    every = read_circuit((whole / "circuit.json").read_bytes()).topology.edge_count
    assert left == [every - known, every]
    assert not file.exists()
    kept = [load_file(folder / SCORES)["kept"] for folder in (stopped, whole)]
    np.testing.assert_array_equal(*kept)
    assert 0 < kept[0].sum() < every


def test_pieces_are_whole_or_not_there_wherever_writing_was_cut_off(tmp_path: Path) -> None:
    names, contents = [bytes([i]) * 16 for i in range(3)], [b"one", b"", b"three" * 50]
    pieces = StoredPieces(RunStore(tmp_path))
    for name, content in zip(names, contents):
        pieces.put(name, content)
    assert [pieces.get(name) for name in names] == contents
    whole = (tmp_path / PIECES).read_bytes()
    ends = [28 + 3, 2 * 28 + 3, 3 * 28 + 253]
    assert len(whole) == ends[-1]
    for cut in [*range(0, 64, 3), 200, len(whole) - 1, len(whole)]:
        (tmp_path / PIECES).write_bytes(whole[:cut])
        again = StoredPieces(RunStore(tmp_path))
        found = [again.get(name) for name in names]
        assert found == [content if cut >= end else None for content, end in zip(contents, ends)]
        for name, content in zip(names, contents):
            again.put(name, content)
        last = StoredPieces(RunStore(tmp_path))
        assert [last.get(name) for name in names] == contents
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    (tmp_path / PIECES).write_bytes(bytes(damaged))
    assert [StoredPieces(RunStore(tmp_path)).get(name) for name in names] == [*contents[:2], None]
    last.clear()
    assert not (tmp_path / PIECES).exists() and last.get(names[0]) is None
