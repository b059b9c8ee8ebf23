"""A small OpenAI-compatible server over one local model: chat completions, the list of models, health."""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from discovery.chat_model import ChatModel, Reply
from discovery.chat_request import BadRequest, ChatRequest, read_request
from discovery.token_stream import Cancelled

LARGEST_BODY = 8 * 2**20
"""Bytes of a request, at most."""
MOST_WAITING = 256
"""Requests that may wait for the model; the next is answered 503."""
_IDLE_SECONDS = 60.0
_CHAT, _HEALTH = "/v1/chat/completions", ("/health", "/v1/health")
_log = logging.getLogger(__name__)


class ChatServer(ThreadingHTTPServer):
    """Serves one model: connections side by side, replies one after the other."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        model: ChatModel,
        host: str = "127.0.0.1",
        port: int = 0,
        largest_body: int = LARGEST_BODY,
        key: str | None = None,
    ) -> None:
        """port 0: a free one. key: what clients must send; None: anything. Raises OSError where the address cannot be used."""
        self.model = model
        self._key = key
        self.largest_body = largest_body
        self.started = int(time.time())
        self.stopping = threading.Event()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(MOST_WAITING)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without looking up the host's name, which can take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def url(self) -> str:
        """The base URL for clients."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"

    def admits(self, authorization: str) -> bool:
        """Whether a request with this header may be answered."""
        sent, wanted = authorization.encode("latin-1", "replace"), f"Bearer {self._key}".encode()
        return self._key is None or hmac.compare_digest(sent, wanted)

    def reply(self, request: ChatRequest, emit: Any = None) -> Reply:
        """The model's reply, when it is this request's turn. Raises BadRequest, Cancelled when the server stops."""
        if not self._places.acquire(blocking=False):
            raise BadRequest("too many requests are waiting", None, "server_overloaded", 503)

        def alive(text: str) -> None:
            if self.stopping.is_set():
                raise Cancelled("the server stops")
            if emit is not None:
                emit(text)

        try:
            with self._turn:
                return self.model.reply(request, alive)
        finally:
            self._places.release()

    def server_close(self) -> None:
        """Ends replies that are being written, and frees the port."""
        self.stopping.set()
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the client's business; it is logged without a traceback."""
        _log.info("connection from %s broke", client_address, exc_info=True)


@contextmanager
def serving(model: ChatModel, host: str = "127.0.0.1", port: int = 0) -> Iterator[ChatServer]:
    """A server in a thread of its own, stopped at the end of the block."""
    server = ChatServer(model, host, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "edgewise"
    sys_version = ""
    timeout = _IDLE_SECONDS
    server: ChatServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        """Models and health."""
        path, model = self._path(), self.server.model.name
        entry = {"id": model, "object": "model", "created": self.server.started, "owned_by": "local"}
        if not self.server.admits(self.headers.get("Authorization", "")) and path not in _HEALTH:
            self._refuse(_wrong_key())
        elif path == "/v1/models":
            self._send(200, {"object": "list", "data": [entry]})
        elif path == f"/v1/models/{model}":
            self._send(200, entry)
        elif path in _HEALTH:
            self._send(200, {"status": "ok", "model": model})
        else:
            self._refuse(self._unknown_path(path))

    def do_POST(self) -> None:
        """Chat completions."""
        path = self._path()
        try:
            if not self.server.admits(self.headers.get("Authorization", "")):
                self.close_connection = True  # the body is left unread
                raise _wrong_key()
            body = self._body()
            if path != _CHAT:
                raise self._unknown_path(path)
            request = read_request(body)
            known = self.server.model.name
            if request.model != known:
                message = f"the model {request.model[:80]!r} does not exist here; this server has {known!r}"
                raise BadRequest(message, "model", "model_not_found", 404)
            (self._stream if request.stream else self._answer)(request)
        except BadRequest as error:
            self._refuse(error)

    def _answer(self, request: ChatRequest) -> None:
        try:
            reply = self.server.reply(request)
        except BadRequest:
            raise
        except Exception as error:  # out of memory, logits that are not numbers, the server stops: the client is told
            self._fail(error)
            return
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        self._send(200, self._head("chat.completion") | {"choices": [choice], "usage": _usage(reply)} | _notes(reply))

    def _stream(self, request: ChatRequest) -> None:
        head, begun = self._head("chat.completion.chunk"), False

        def send(data: Mapping[str, Any] | str) -> None:
            text = data if isinstance(data, str) else json.dumps(data)
            self.wfile.write(f"data: {text}\n\n".encode())

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Cache-Control", "no-cache")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                chunk({"role": "assistant", "content": ""})
            send(head | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})

        try:
            reply = self.server.reply(request, lambda text: chunk({"content": text}))
        except (BadRequest, OSError):  # an OSError: the client has gone
            raise
        except Exception as error:
            if not begun:
                self._fail(error)
            else:
                send(_error(f"the reply failed: {_one_line(error)}", None, None, 500))
            return
        chunk({}, reply.finish)
        if request.stream_usage:
            send(head | {"choices": [], "usage": _usage(reply)} | _notes(reply))
        send("[DONE]")

    def _body(self) -> bytes:
        """The whole body. Raises BadRequest, after which the connection is closed, for the rest of it was not read."""
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if not length.isascii() or not length.isdecimal():
            self.close_connection = True
            raise BadRequest("the request has no Content-Length", status=411)
        if int(length[:20]) > self.server.largest_body:
            self.close_connection = True
            raise BadRequest(f"the request is larger than {self.server.largest_body} bytes", status=413)
        if kind != "application/json":  # a web page cannot send this type to another host without being allowed to
            self.close_connection = True
            raise BadRequest(f"Content-Type is {kind!r}, not application/json", status=415)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise BadRequest("the body is shorter than its Content-Length")
        return body

    def _path(self) -> str:
        return unquote(self.path.partition("?")[0]).rstrip("/")

    def _unknown_path(self, path: str) -> BadRequest:
        text = f"unknown address {self.command} {path[:80]!r}: POST {_CHAT}, GET /v1/models and GET /health are served"
        return BadRequest(text, None, "unknown_url", 404)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.server.model.name,
        }

    def _fail(self, error: BaseException) -> None:
        _log.error("a reply failed: %s", _one_line(error), exc_info=not isinstance(error, Cancelled))
        if isinstance(error, Cancelled):
            self.close_connection = True
            self._send(503, _error("the server stops", None, "server_stopping", 503))
        else:
            self._send(500, _error(f"the reply failed: {_one_line(error)}", None, None, 500))

    def _refuse(self, error: BadRequest) -> None:
        self._send(error.status, _error(str(error), error.param, error.code, error.status))

    def _send(self, status: int, data: Mapping[str, Any]) -> None:
        content = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Into the log, not onto stderr."""
        _log.info("%s %s", self.address_string(), format % args)


def _wrong_key() -> BadRequest:
    return BadRequest(
        "this server wants another key: send it as Authorization: Bearer KEY", None, "invalid_api_key", 401
    )


def _error(message: str, param: str | None, code: str | None, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _usage(reply: Reply) -> dict[str, int]:
    total = reply.prompt_tokens + reply.reply_tokens
    return {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.reply_tokens, "total_tokens": total}


def _notes(reply: Reply) -> dict[str, Any]:
    """What OpenAI's form has no field for."""
    notes = {"cut_prompt_tokens": reply.cut_prompt_tokens, "cut_strings": reply.cut_strings}
    return {"edgewise": {name: count for name, count in notes.items() if count}} if any(notes.values()) else {}


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__
