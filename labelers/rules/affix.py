"""How the token's word begins or ends, whatever its case: `un...`, `...ing`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from labelers.rules.rule import Mask, Rule, quoted, seen
from labelers.text import Text

_LENGTHS = (2, 3, 4)


def _rule(part: Callable[[str, int], str], say: str) -> Rule:
    def where(text: Text, words: tuple[str, ...]) -> Mask:
        wanted = [
            token
            for token in text.numbers
            if any(len(_bare(token)) > len(word) and part(_bare(token), len(word)) == word for word in words)
        ]
        return text.is_one_of(wanted)

    def words(text: Text, at: Mask) -> Iterable[str]:
        counts: dict[str, int] = {}
        for token in seen(text, at, 1):
            for length in _LENGTHS:
                if len(_bare(token)) > length and part(_bare(token), length).isalpha():
                    counts[part(_bare(token), length)] = counts.get(part(_bare(token), length), 0) + 1
        return [word for word, count in counts.items() if count >= 3]

    return Rule(where, words, lambda chosen: f"{say} {quoted(chosen)}")


def _bare(token: str) -> str:
    return token.strip().lower()


PREFIX = _rule(lambda word, length: word[:length], "starts with")
SUFFIX = _rule(lambda word, length: word[-length:], "ends with")
