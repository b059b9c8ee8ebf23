"""A chat completions endpoint on loopback whose every reply a test decides: replies, status codes, garbage, silence."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server does with one request."""

    body: bytes = b""
    """The body."""
    status: int = 200
    """The status."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers."""
    delay: float = 0.0
    """Seconds before anything is sent."""
    cut: bool = False
    """Promises more bytes than it sends, and hangs up."""


def completion(
    content: str | None, *, finish: str = "stop", refusal: str | None = None, usage: Any = (100, 20)
) -> Answer:
    """A chat completion as OpenAI sends it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    data: dict[str, Any] = {
        "id": "c1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage is not None:
        data["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return Answer(json.dumps(data).encode())


def failure(
    status: int, message: str = "no", *, code: str | None = None, param: str | None = None, **headers: str
) -> Answer:
    """An error object as OpenAI sends it; underscores in header names become hyphens."""
    error = {"error": {"message": message, "type": "x", "code": code, "param": param}}
    return Answer(
        json.dumps(error).encode(), status, {name.replace("_", "-"): value for name, value in headers.items()}
    )


@dataclass
class Seen:
    """What reached the server."""

    url: str = ""
    """Address for `base_url`."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    """Bodies, in the order of arrival."""
    headers: list[dict[str, str]] = field(default_factory=list)
    """Their headers, names in lower case."""
    times: list[float] = field(default_factory=list)
    """When they came, in seconds."""
    answered: int = 0
    """Replies that were sent in full."""
    most_at_once: int = 0
    """Largest number of requests under way together."""
    _now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while counts change."""


@contextmanager
def faulty_server(decide: Callable[[dict[str, Any], int], Answer]) -> Iterator[Seen]:
    """Runs the server. decide: gets a request's body and its number from 0, in a thread of its own."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with seen.lock:
                number = len(seen.requests)
                seen.requests.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                seen.times.append(time.monotonic())
                seen._now += 1
                seen.most_at_once = max(seen.most_at_once, seen._now)
            try:
                self._answer(decide(body, number))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with seen.lock:
                    seen._now -= 1

        def _answer(self, answer: Answer) -> None:
            time.sleep(answer.delay)
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body) + 100 * answer.cut))
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()
            with seen.lock:
                seen.answered += 1
            self.close_connection = self.close_connection or answer.cut

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
