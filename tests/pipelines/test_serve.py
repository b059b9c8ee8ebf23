"""`edgewise serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from discovery.demo import model_directory
from pipelines.cli import main

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not model_directory().is_dir(), reason="the embedded model is not in this checkout")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_the_embedded_model_is_served_until_interrupted() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("serving embedded at http://127.0.0.1:")
            url = line.split()[-1]
            body = {"model": "embedded", "messages": [{"role": "user", "content": "Mary"}], "max_tokens": 3}
            request = urllib.request.Request(
                f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                reply: Any = json.loads(answer.read())
            assert reply["usage"]["completion_tokens"] <= 3
        finally:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "stopped\n"), err


def test_a_key_that_is_wanted_must_be_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEWISE_API_KEY", raising=False)
    assert main(["serve", "--port", "0", "--require-key"]) == 2
    assert "EDGEWISE_API_KEY is not set" in capsys.readouterr().err


def test_a_taken_port_and_a_missing_model_are_said_in_one_line(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port, "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot listen on 127.0.0.1 port {port}" in error
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "does not exist" in capsys.readouterr().err.splitlines()[-1]
