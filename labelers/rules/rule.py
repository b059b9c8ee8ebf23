"""What a rule is: something that can be said of a token from the text around it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from labelers.text import Text

Mask = Bool[np.ndarray, " token"]

LEAST_SUPPORT = 2
"""Windows in which a word of a rule must hold: what was seen once is not a rule."""


@dataclass(frozen=True)
class Rule:
    """One kind of thing that a node may respond to. Its words say which; more words are more ways to fit."""

    where: Callable[[Text, tuple[str, ...]], Mask]
    """At which tokens it holds, for some words."""
    words: Callable[[Text, Mask], Iterable[str]]
    """Words that are worth a try, given where the node fires."""
    say: Callable[[tuple[str, ...]], str]
    """A name of a few words."""
    order: int = 0
    """Where it stands in the name of several rules: what the token is comes first, then what is beside it."""


def seen(text: Text, at: Mask, least: int = LEAST_SUPPORT) -> list[str]:
    """The different tokens at these places in at least so many windows, in their order."""
    places = np.flatnonzero(at)
    return _often(zip(text.first[places].tolist(), (text.tokens[place] for place in places)), least)


def seen_before(text: Text, at: Mask, reach: int, least: int = LEAST_SUPPORT) -> list[str]:
    """The same for tokens among the `reach` ones in front of these places, in their own window."""
    places = np.flatnonzero(at)
    return _often(
        (
            (first, token)
            for place, first in zip(places.tolist(), text.first[places].tolist())
            for token in text.tokens[max(first, place - reach) : place]
        ),
        least,
    )


def _often(found: Iterable[tuple[int, str]], least: int) -> list[str]:
    counts = Counter(token for _, token in dict.fromkeys(found))
    return [token for token, count in counts.items() if count >= least]


_SHOWN = 3
"""Words of a set that a label shows."""
_LONGEST_WORD = 24
"""Characters of a token that a label shows."""


def quoted(words: tuple[str, ...]) -> str:
    """The words in quotation marks, the first few of them, as one word."""
    return ",".join(f'"{show(word)}"' for word in words[:_SHOWN]) + (",…" if len(words) > _SHOWN else "")


def show(token: str) -> str:
    """A token as one short printable word."""
    text = "".join(c if c.isprintable() and not c.isspace() else "·" for c in token.strip()) or repr(token)[1:-1]
    text = text.replace(" ", "␣")
    return text if len(text) <= _LONGEST_WORD else text[: _LONGEST_WORD - 1] + "…"
