"""The commands that ask a language model, against real servers: named, judged, told; killed, capped, repeated; no key kept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from discovery.demo import model_directory as embedded_model
from graphs.evidence_json import evidence_from_json, labels_from_json
from graphs.label import ROLES
from labelers.reply_cache import ReplyCache
from pipelines.cli import main
from tests.labelers.faulty_server import Answer, Seen, completion, failure, faulty_server
from tests.labelers.test_openai_labeler import data_of, reply_for
from tests.pipelines.conftest import ROOT

SECRET = "sk-not-to-be-found-anywhere"


@pytest.fixture
def run(model_directory: Path, task_file: Path, tmp_path: Path) -> Path:
    """A run of edgewise discover with a small circuit and its evidence."""
    out = tmp_path / "run"
    common = ["--model", str(model_directory), "--task", str(task_file), "--out", str(out), "--formats", "json,svg"]
    few = ["--edges", "12", "--rivals", "0", "--bootstrap", "0", "--random-circuits", "0", "--sizes", "0.2"]
    assert main(["discover", "--method", "eap-ig", *common, *few]) == 0
    assert main(["label", str(out)]) == 0
    return out


def asking(url: str, name: str = "m") -> list[str]:
    """The flags of an endpoint."""
    return ["--llm", name, "--base-url", url]


def labels_of(run: Path) -> Any:
    """labels.json."""
    return labels_from_json((run / "labels.json").read_bytes())


def anything(body: dict[str, Any], _: int = 0) -> Answer:
    """A right reply to every question of every command."""
    fields = body["response_format"]["json_schema"]["schema"]["properties"]
    data = data_of(body)
    if "sentences" in fields:
        edge = {key: data["edges"][0][key] for key in ("edge", "effect")}
        return completion(json.dumps({"sentences": [{"text": "It begins.", "edges": [edge]}]}))
    if "label" in fields:
        return reply_for(body)
    return completion(json.dumps({name: field["enum"][0] for name, field in fields.items()}))


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The embedded model behind an address; it reads the end of what its context cannot hold."""
    if not embedded_model().is_dir():
        pytest.skip("the embedded model is not in this checkout")
    from discovery.chat_model import load_chat_model
    from discovery.serving import serving

    with serving(load_chat_model(embedded_model(), "embedded", long_prompts="cut")) as server:
        yield server.url


def test_a_small_real_model_names_judges_and_tells(served: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm = [*asking(served, "embedded"), "--reply-tokens", "60"]
    # The rules' names are judged: this model may abstain from all of its own.
    assert main(["score", str(run), "--judge", "openai", "--tests", "detection", "--no-baseline", *llm]) == 0
    judged = labels_of(run)
    assert any("detection" in label.scores for label in judged.labels.values())
    assert judged.facts["judge_usage"]["requests"] > 0
    assert main(["label", str(run), "--labeler", "openai", *llm]) == 0
    found = labels_of(run)
    evidence = {p.stem: evidence_from_json(p.read_bytes()) for p in (run / "evidence").glob("*.json")}
    for node, label in found.labels.items():
        assert label.role in ROLES and set(label.cites) <= evidence[str(node)].ids
        sent = node.kind in ("head", "mlp")
        assert (label.labeler == "embedded") == (sent and str(node) not in found.facts.get("failures", {}))
    # The form of a guided reply is right; the number of a label's words may not be.
    assert all("'label' has" in reason for reason in found.facts.get("failures", {}).values())
    assert found.facts["usage"]["requests"] >= 2 * sum(node.kind in ("head", "mlp") for node in found.labels)
    assert main(["story", str(run), "--teller", "openai", *llm]) == 0
    assert json.loads((run / "story.json").read_text())["author"] in ("embedded", "rules")
    capsys.readouterr()
    assert main(["label", str(run), "--labeler", "openai", *llm]) == 0
    assert "requests 0, cached" in capsys.readouterr().out
    again = labels_of(run)
    assert {n: label.text for n, label in again.labels.items()} == {n: v.text for n, v in found.labels.items()}


def test_no_key_reaches_a_file_or_a_log(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("EDGEWISE_API_KEY", SECRET)
    caplog.set_level("DEBUG")

    def decide(body: dict[str, Any], number: int) -> Answer:
        return failure(500, f"no luck with {SECRET}") if number % 7 == 3 else anything(body)

    with faulty_server(decide) as seen:
        llm = asking(seen.url)
        for arguments in (["label", "--labeler"], ["score", "--judge"], ["story", "--teller"]):
            assert main([arguments[0], str(run), "--debug", arguments[1], "openai", *llm]) == 0
        assert {header["authorization"] for header in seen.headers} == {f"Bearer {SECRET}"}
    with faulty_server(lambda *_: failure(401, f"Incorrect API key provided: {SECRET}")) as seen:
        assert main(["story", str(run), "--teller", "openai", *asking(seen.url, "other")]) == 2
    said = capsys.readouterr()
    assert "refuses the key" in said.err
    for text in (said.out, said.err, caplog.text, *map(str, run.rglob("*"))):
        assert SECRET not in text
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.name == "replies.sqlite" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_caps_hold_over_all_that_a_command_asks(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with faulty_server(anything) as seen:
        llm = [*asking(seen.url), "--price", "1000,1000", "--passes", "one"]
        assert main(["label", str(run), "--labeler", "openai", "--dry-run", *llm]) == 0
        assert not seen.requests and "price unknown" not in (said := capsys.readouterr().out) and "$" in said
        assert main(["label", str(run), "--labeler", "openai", "--max-tokens", "10", *llm]) == 0
        assert not seen.requests and "budget is spent" in capsys.readouterr().out
        assert main(["label", str(run), "--labeler", "openai", *llm]) == 0
        # Each reply counts 120 tokens; the shuffled questions come second, and the same cap holds for them.
        cap = 120 * 10 + 9_000
        capsys.readouterr()
        before = len(seen.requests)
        assert main(["score", str(run), "--judge", "openai", "--dry-run", *llm]) == 0
        assert len(seen.requests) == before and (said := capsys.readouterr().out).count("\n") == 1 and "$" in said
        assert main(["score", str(run), "--judge", "openai", "--max-tokens", str(cap), *llm]) in (0, 2)
        assert 120 * (len(seen.requests) - before) <= cap


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_command_goes_on_where_it_was(run: Path) -> None:
    at_once, wanted = 3, 6

    def decide(body: dict[str, Any], number: int) -> Answer:
        return Answer(anything(body).body, delay=0.03 + 0.02 * (number % 3))

    def start(seen: Seen) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipelines.cli", "label", str(run), "--labeler", "openai"]
        limits = ["--concurrency", str(at_once), *asking(seen.url)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([*command, *limits], cwd=run, env=environment, stderr=subprocess.DEVNULL)

    with faulty_server(decide) as seen:
        process = start(seen)
        while seen.answered < wanted and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        with ReplyCache(run / "replies.sqlite") as kept:
            assert len(kept) >= wanted - at_once
        assert labels_of(run).facts["labeler"] == "rules"  # written at the end, whole
        assert main(["label", str(run), "--labeler", "openai", *asking(seen.url)]) == 0
        sent = Counter(json.dumps(body, sort_keys=True) for body in seen.requests)
    assert sum(count - 1 for count in sent.values()) <= at_once
    usage = labels_of(run).facts["usage"]
    assert usage["cached"] >= wanted - at_once and usage["requests"] + usage["cached"] == len(sent)


def test_commands_at_once_share_one_cache(run: Path) -> None:
    with faulty_server(lambda body, _: Answer(anything(body).body, delay=0.01)) as seen:
        command = ["label", str(run), "--labeler", "openai", *asking(seen.url)]
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(main, [command] * 3)) == [0, 0, 0]
        before = len(seen.requests)
        assert main(command) == 0
        assert len(seen.requests) == before
    labels = labels_of(run)
    assert not labels.facts.get("failures") and labels.facts["usage"]["requests"] == 0


def test_a_broken_cache_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with faulty_server(anything) as seen:
        arguments = ["label", str(run), "--labeler", "openai", *asking(seen.url)]
        assert main(arguments) == 0
        cache = run / "replies.sqlite"
        whole = cache.read_bytes()
        for broken in (b"no database " * 900, whole[:4096] + bytes(len(whole) - 4096), whole[: len(whole) // 2]):
            for leftover in run.glob("replies.sqlite*"):
                leftover.unlink()
            cache.write_bytes(broken)
            capsys.readouterr()
            assert main(arguments) == 2
            said = capsys.readouterr().err.splitlines()
            told = [line for line in said if line.startswith("edgewise: ")]
            assert len(told) == 1 and "replies.sqlite: the cache of replies" in told[0] and "move it away" in told[0]
            assert "Traceback" not in "".join(said)
