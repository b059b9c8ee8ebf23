"""What may go wrong with a request to an endpoint: faults that pass, that another spelling mends, and that stay."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

AGAIN = (408, 409, 425, 429)
"""Statuses of faults that may pass, beside those from 500."""
FATAL = {401: "refuses the key", 403: "refuses access", 404: "has no such address or model"}
"""Statuses after which nothing can be had from the endpoint."""
TOO_LARGE = 413
_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size)|max(?:imum)?[ _]model[ _]len|max_new_tokens|input token count"
    r"|(?:prompt|input|inputs|request|messages) (?:(?:is|are|was) )?(?:too (?:long|large)|longer)|reduce the length"
)  # OpenAI, vLLM, llama.cpp, SGLang, TGI, LM Studio, Gemini, Anthropic, Groq


class RequestFailed(ValueError):
    """A request that got no reply; the message says why, in one line."""


class PromptTooLong(RequestFailed):
    """A request that the model's context cannot hold: the same with less data may be answered."""

    def __init__(self, said: str, key: str) -> None:
        """said: one line. key: of the request, in the cache of replies."""
        super().__init__(f"the context of the endpoint's model cannot hold the request ({said})")
        self.said, self.key = said, key


class EndpointUnusable(ValueError):
    """Nothing can be had from this endpoint: a wrong address, key or model."""


class FormatRefused(ValueError):
    """The endpoint does not take this response format."""


class Adapted(Exception):
    """The same request is to be sent again in another spelling."""


class Passing(Exception):
    """A fault that may pass."""

    def __init__(self, text: str, after: float | None = None, unreachable: bool = False) -> None:
        """after: seconds that the server asks to wait. unreachable: whether nobody answered at all."""
        super().__init__(text)
        self.after, self.unreachable = after, unreachable


def is_too_long(status: int, complaint: str) -> bool:
    """Whether an error says that the model's context cannot hold the request. complaint: its code and message, lower case."""
    return status == TOO_LARGE or (status in (400, 422, 429, 500) and _TOO_LONG.search(complaint) is not None)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `retry-after` as a number or a date."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        return max(seconds, 0.0) if seconds == seconds else None
    try:
        return max(email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
