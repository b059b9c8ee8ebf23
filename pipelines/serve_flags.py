"""The flags of `edgewise serve`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse

from pipelines.flags import add_flags

EPILOG = """\
Then, from any OpenAI client: base URL http://127.0.0.1:8000/v1, any key. Served are POST /v1/chat/completions (with
response_format json_schema and json_object, and stream), GET /v1/models and GET /health. Ctrl-C stops it. There is no
encryption, and no key without --require-key: leave it on the loopback address, or put a proxy in front."""


def add_serve_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise serve` takes."""
    parser.add_argument(
        "directory", nargs="?", metavar="MODEL", help="directory or hub name (default: the embedded model)"
    )
    add_flags(parser, ("model",), leave_out=("--model", "--revision", "--kv-heads"))
    group = parser.add_argument_group("server")
    add = group.add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=_port, default=8000, metavar="N", help="port; 0 = a free one (default: 8000)")
    add("--name", metavar="ID", help="what requests call the model (default: its directory's name)")
    add(
        "--require-key", action="store_true",
        help="answer only who sends the key that stands in this server's EDGEWISE_API_KEY (default: any key will do)",
    )  # fmt: skip
    add(
        "--long-prompts", choices=("refuse", "cut"), default="refuse",
        help="a prompt beyond the context: refuse it, or keep its first token and its end (default: refuse)",
    )  # fmt: skip


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise argparse.ArgumentTypeError("not between 0 and 65535")
    return port
