"""The same client, model and chat, asked of `transformers serve`: the reply of zero temperature is the same."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from discovery.chat_model import load_chat_model
from discovery.serving import serving

CHAT: Any = [{"role": "user", "content": "Once upon a time there was a girl called Lily."}]
_ABSENT = [name for name in ("fastapi", "uvicorn", "starlette", "rich") if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(_ABSENT), reason=f"needs the extra transformers[serving]: {', '.join(_ABSENT)} not here")
def test_greedy_replies_are_those_of_transformers_serve(shared: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stories"
    shutil.copytree(shared / "models" / "stories260K", directory, copy_function=shutil.copyfile)
    (directory / "chat_template.jinja").write_text("{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}")
    asked: Any = {"model": str(directory), "messages": CHAT, "max_tokens": 30, "temperature": 0.0}
    (tmp_path / "hub").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            theirs = _patiently(f"http://localhost:{port}/v1", asked)
        finally:
            process.kill()
    model = load_chat_model(directory, str(directory), device="cpu")
    with serving(model) as running, OpenAI(base_url=running.url, api_key="none", max_retries=0) as client:
        ours = client.chat.completions.create(**asked).choices[0].message.content
    assert ours
    assert ours.strip() == theirs.strip()


def _patiently(url: str, asked: Any) -> str:
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
        for _ in range(60):
            try:
                return str(client.chat.completions.create(**asked).choices[0].message.content)
            except openai.APIConnectionError:
                time.sleep(1)
    raise AssertionError("transformers serve did not start")
