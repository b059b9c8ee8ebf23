"""A tiny random model and a token-id task on disk, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from discovery.component_model import ComponentModel
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from tests.discovery.tiny_models import tiny_model
from tests.discovery.tiny_transcoders import tiny_transcoders

ROOT = Path(__file__).resolve().parents[2]
Edgewise = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped key/value heads: 3 layers, 4 heads, 2 kv heads, no tokenizer."""
    directory = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def transcoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ReLU transcoders of that model, in circuit-tracer's layout."""
    directory = tmp_path_factory.mktemp("transcoders")
    write_circuit_tracer(tiny_transcoders(ComponentModel(tiny_model("llama")), "relu"), directory)
    return directory


@pytest.fixture(scope="session")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs of token ids of several lengths."""
    path = tmp_path_factory.mktemp("task") / "ids.jsonl"
    rng = random.Random(0)
    rows = []
    for _ in range(24):
        clean = [rng.randint(3, 40) for _ in range(rng.randint(5, 9))]
        corrupt = list(clean)
        corrupt[2] = 3 + (clean[2] - 3 + rng.randint(1, 30)) % 38
        right, wrong = rng.sample(range(3, 41), 2)
        rows.append({"clean": clean, "corrupt": corrupt, "answers": [right], "wrong_answers": [wrong]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def edgewise(tmp_path: Path) -> Edgewise:
    """`edgewise(*arguments)` runs the command line in `tmp_path` and gives the finished process."""

    def run(*arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
