"""A labelling run that is killed at any point sends nothing again whose reply had arrived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from labelers.reply_cache import ReplyCache
from tests.labelers.faulty_server import Answer, Seen, faulty_server

NODES, CONCURRENCY = 8, 3
PROGRAM = """\
import sys
from pathlib import Path
from graphs.node import NodeId
from labelers.openai_labeler import label_nodes
from labelers.openai_settings import OpenAISettings
from tests.labelers.test_openai_labeler import Rules, feature
nodes = [NodeId("feature", number % 2, number) for number in range(int(sys.argv[3]))]
settings = OpenAISettings("m", base_url=sys.argv[1], cache=Path(sys.argv[2]), concurrency=int(sys.argv[4]))
found = label_nodes({node: feature(node) for node in nodes}, settings, fallback=Rules(), progress=False)
print(int(found.usage["requests"]), int(found.usage["cached"]), len(found.failures))
"""


def start(seen: Seen, cache: Path, root: Path) -> subprocess.Popen[str]:
    """A labelling run in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, seen.url, str(cache), str(NODES), str(CONCURRENCY)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_runs_go_on_where_they_were(tmp_path: Path, root: Path) -> None:
    from tests.labelers.test_openai_labeler import reply_for

    cache, in_all = tmp_path / "replies.sqlite", 3 * NODES

    def decide(body: dict[str, Any], number: int) -> Answer:
        answer = reply_for(body)
        return Answer(answer.body, delay=0.01 + 0.01 * (number % 3))

    with faulty_server(decide) as seen:
        for kills, wanted in enumerate((4, 11, 19), start=1):
            process = start(seen, cache, root)
            while seen.answered < wanted and process.poll() is None:
                time.sleep(0.001)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            with ReplyCache(cache) as kept:
                assert len(kept) >= wanted - kills * CONCURRENCY
        finished = start(seen, cache, root)
        said = finished.communicate(timeout=60)[0].split()
        sent = Counter(json.dumps(body, sort_keys=True) for body in seen.requests)
        assert len(sent) == in_all and said[2] == "0"
        repeated = sum(count - 1 for count in sent.values())
        assert repeated <= 3 * CONCURRENCY
        before = len(seen.requests)
        rerun = start(seen, cache, root)
        assert rerun.communicate(timeout=60)[0].split() == ["0", str(in_all), "0"]
        assert len(seen.requests) == before
