"""`edgewise serve`: a local model behind an OpenAI-compatible address."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import logging
import os
from collections.abc import Callable

from pipelines.config import ModelConfig
from pipelines.model_source import model_place
from pipelines.settings import ConfigError

EMBEDDED = "embedded"
"""What the embedded model is called in requests."""
_log = logging.getLogger(__name__)


def serve(config: ModelConfig, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Serves until it is interrupted. say: is given the address, once requests are taken.

    Raises ConfigError for an address that cannot be used, ModelNotLoaded for the model.
    """
    from discovery.chat_model import load_chat_model
    from discovery.serving import ChatServer

    if options.directory is not None:
        config = dataclasses.replace(config, name=options.directory)
    key = _key() if options.require_key else None
    place = model_place(config)
    name = options.name or (EMBEDDED if config.name is None else place.rstrip("/").rpartition("/")[2] or place)
    model = load_chat_model(
        place,
        name,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        trust_remote_code=config.trust_remote_code,
        long_prompts=options.long_prompts,
    )
    try:
        server = ChatServer(model, options.host, options.port, key=key)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {options.host} port {options.port}: {reason}; try --port 0") from error
    if not _is_loopback(options.host):
        without = "without encryption" if key else "without a key and without encryption"
        _log.warning("%s is open to other machines, %s", server.url, without)
    with server:
        say(f"serving {name} at {server.url}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("stopped")


def _key() -> str:
    """The key that clients must send: from the environment alone, as command lines can be read by others."""
    key = os.environ.get("EDGEWISE_API_KEY", "")
    if not key:
        raise ConfigError("--require-key: EDGEWISE_API_KEY is not set")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
