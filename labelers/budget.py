"""What a labelling run may cost: every request reserves the most that it can use before it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from labelers.openai_settings import Prices

BYTES_PER_TOKEN = 3.2
"""Of evidence in JSON, for estimates: between prose (4) and bare numbers (2)."""
PER_MESSAGE = 32
"""Tokens that chat formats may add to a message, at most."""


class BudgetSpent(ValueError):
    """The next request could cost more than is left."""


@dataclass(frozen=True)
class Usage:
    """What a run has cost."""

    requests: int = 0
    """Requests that were answered by the endpoint."""
    cached: int = 0
    """Replies that came from the cache."""
    retries: int = 0
    """Attempts that failed and were repeated."""
    prompt_tokens: int = 0
    """Tokens sent, as the endpoint counts them; where it does not say, the most that they can be."""
    reply_tokens: int = 0
    """Tokens that came back, likewise."""
    usd: float | None = None
    """US dollars; None where prices are not known."""
    seconds: float = 0.0
    """How long it took."""

    def as_numbers(self) -> dict[str, float]:
        """The same by name, as `Labelling.usage` holds it."""
        found = {"requests": self.requests, "cached": self.cached, "retries": self.retries, "seconds": self.seconds}
        found |= {"tokens_in": self.prompt_tokens, "tokens_out": self.reply_tokens}
        found |= {} if self.usd is None else {"usd": self.usd}
        return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Reservation:
    """What one request may use."""

    prompt: int
    """Tokens that are sent, at most."""
    reply: int
    """Tokens that come back, at most."""


def most_tokens(texts: Iterable[str]) -> int:
    """Upper bound of the tokens of some messages under any tokenizer: one for each byte, and those of the chat format."""
    return sum(len(text.encode("utf-8", "surrogatepass")) + PER_MESSAGE for text in texts)


def likely_tokens(texts: Iterable[str]) -> int:
    """Estimate of the same, for forecasts."""
    return round(sum(len(text.encode("utf-8", "surrogatepass")) / BYTES_PER_TOKEN + PER_MESSAGE / 4 for text in texts))


def cost(prices: Prices, prompt: int, reply: int) -> float:
    """US dollars for tokens sent and received."""
    return (prompt * prices.prompt + reply * prices.reply) / 1e6


class Budget:
    """Counts tokens and dollars, and refuses what could go beyond a cap. For one event loop."""

    def __init__(
        self,
        prices: Prices | None = None,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        spent: tuple[int, int] = (0, 0),
    ) -> None:
        """max_usd needs prices; ValueError otherwise. spent: tokens sent and received before, which count against the caps."""
        if max_usd is not None and prices is None:
            raise ValueError("a cap in dollars needs prices: say what a million tokens cost")
        self._prices, self._max_usd, self._max_tokens = prices, max_usd, max_tokens
        self._before = spent
        self._open: list[Reservation] = []
        self._settled = asyncio.Condition()
        self.prompt_tokens = 0
        """Tokens sent so far."""
        self.reply_tokens = 0
        """Tokens that came back so far."""

    @property
    def usd(self) -> float | None:
        """Dollars so far; None where prices are not known."""
        return self._cost(self.prompt_tokens, self.reply_tokens)

    async def reserve(self, prompt: int, reply: int) -> Reservation:
        """Sets aside the most that a request can use. Waits while others under way may turn out cheaper than reserved;
        raises BudgetSpent when nothing is under way and the request still does not fit."""
        wanted = Reservation(prompt, reply)
        async with self._settled:
            while not self._fits(wanted):
                if not self._open:
                    raise BudgetSpent(self._full(wanted))
                await self._settled.wait()
            self._open.append(wanted)
        return wanted

    async def settle(self, reservation: Reservation, prompt: int, reply: int) -> None:
        """Puts what was used in the place of what was reserved."""
        async with self._settled:
            self._open.remove(reservation)
            self.prompt_tokens += prompt
            self.reply_tokens += reply
            self._settled.notify_all()

    def _fits(self, wanted: Reservation) -> bool:
        prompt = self._before[0] + self.prompt_tokens + sum(item.prompt for item in self._open) + wanted.prompt
        reply = self._before[1] + self.reply_tokens + sum(item.reply for item in self._open) + wanted.reply
        cost = self._cost(prompt, reply)
        if self._max_usd is not None and cost is not None and cost > self._max_usd:
            return False
        return self._max_tokens is None or prompt + reply <= self._max_tokens

    def _cost(self, prompt: int, reply: int) -> float | None:
        return None if self._prices is None else cost(self._prices, prompt, reply)

    def _full(self, wanted: Reservation) -> str:
        prompt, reply = self._before[0] + self.prompt_tokens, self._before[1] + self.reply_tokens
        usd = self._cost(prompt, reply)
        used = f"{prompt + reply:,} tokens" + ("" if usd is None else f" (${usd:.4f})")
        return f"the budget is spent: {used} used, and the next request may take {wanted.prompt + wanted.reply:,} more"
