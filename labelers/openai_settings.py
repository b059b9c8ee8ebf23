"""What to ask a language model for names with: endpoint, limits, retries, caps. The key comes from the environment alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

OPENAI_URL = "https://api.openai.com/v1"
OWN_KEY, OPENAI_KEY = "EDGEWISE_API_KEY", "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent where there is no key: local servers want none."""
Passes = Literal["three", "one"]
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Prices:
    """US dollars for a million tokens."""

    prompt: float
    """Of what is sent."""
    reply: float
    """Of what comes back, thinking included."""


@dataclass(frozen=True)
class OpenAISettings:
    """An OpenAI-compatible endpoint and how to use it."""

    model: str
    """Name of the model, as the endpoint knows it."""
    base_url: str | None = None
    """Such as http://127.0.0.1:8000/v1; None: the environment's OPENAI_BASE_URL, else OpenAI's own."""
    concurrency: int = 8
    """Requests under way at once, at most."""
    timeout: float = 120.0
    """Seconds that one request may take in all."""
    retries: int = 5
    """Further attempts after rate limits, server errors and broken connections."""
    longest_wait: float = 120.0
    """Seconds: a server that asks for a longer pause than this has failed the request."""
    temperature: float = 0.0
    """Sampling temperature; left out where the endpoint refuses it."""
    seed: int = 0
    """Sampling seed; left out where the endpoint refuses it."""
    reply_tokens: int = 600
    """Tokens that a reply may have; twice as many after one that was cut off."""
    passes: Passes = "three"
    """three: output side, input side, then both together with the neighbours' names. one: everything at once."""
    prices: Prices | None = None
    """None: not known, so that no cap in dollars can be kept."""
    max_usd: float | None = None
    """Cap of one run. Cached replies cost nothing."""
    max_tokens: int | None = None
    """Cap of one run, of what is sent and comes back together."""
    spent: tuple[int, int] = (0, 0)
    """Tokens sent and received that count against the caps already: of what the same run has asked before."""
    cache: Path | None = None
    """SQLite file of replies; None: nothing is kept."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("the openai labeler needs a model: give the name that the endpoint knows")
        for name in ("concurrency", "timeout", "reply_tokens", "longest_wait"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.retries < 0 or self.temperature < 0:
            raise ValueError("retries and temperature must not be negative")
        if self.max_usd is not None and self.prices is None:
            raise ValueError(
                f"a cap in dollars needs prices, and those of {self.model!r} are not known: say what a million tokens cost"
            )
        if any(cap is not None and not cap > 0 for cap in (self.max_usd, self.max_tokens)):
            raise ValueError("a cap must be more than 0")

    @property
    def url(self) -> str:
        """Where requests go, without a slash at its end. Raises ValueError for what is no plain http(s) address."""
        url = (self.base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the endpoint {_shown(url)!r} is not an http(s) address such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(f"the endpoint's address must hold no user, password or query: put the key into {OWN_KEY}")
        return url

    def key(self, environment: Mapping[str, str] | None = None) -> str:
        """The key to send: EDGEWISE_API_KEY, else OPENAI_API_KEY (never unencrypted to another machine), else none.

        Raises ValueError where OpenAI's own endpoint is meant and there is no key.
        """
        environment = os.environ if environment is None else environment
        parts = urlsplit(self.url)
        own, openai = environment.get(OWN_KEY), environment.get(OPENAI_KEY)
        if own:
            return own
        if openai and (parts.scheme == "https" or parts.hostname in _LOOPBACK):
            return openai
        if self.url == OPENAI_URL:
            raise ValueError(f"{OPENAI_URL} needs a key: set {OPENAI_KEY}, or name another endpoint")
        return NO_KEY


def _shown(url: str) -> str:
    """An address without what may be a password."""
    return url.rpartition("@")[2][:80]
