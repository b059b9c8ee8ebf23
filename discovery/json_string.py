"""Which tokens may come next inside a JSON string, for all tokens of a vocabulary at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, UInt8

START = 0
"""State between two characters."""
CLOSED = 14
"""State behind the closing quote."""
_BROKEN = 15
_LONGEST = 32  # bytes; longer tokens (runs of blanks, mostly) are not used in strings
AFTER = b",:}] \n\r\t"
"""What a token may hold behind the closing quote; it is thrown away, since what follows a string is known."""


def _transitions() -> Int[np.ndarray, "state byte"]:
    """[state, byte] -> state. 1: behind a backslash; 2 to 6: in \\uXXXX; 7 to 13: within a character's UTF-8 bytes."""
    table = np.full((16, 256), _BROKEN, np.int64)

    def allow(state: int, low: int, high: int, then: int) -> None:
        table[state, low : high + 1] = then

    allow(START, 0x20, 0x7F, START)
    table[START, ord("\\")], table[START, ord('"')] = 1, CLOSED
    for letter in b'"\\/bfnrt':
        table[1, letter] = START
    table[1, ord("u")] = 2
    for state, then in ((2, 3), (3, 4), (4, 5), (5, START)):
        for low, high in (("0", "9"), ("a", "f"), ("A", "F")):
            allow(state, ord(low), ord(high), then)
    table[2, [ord("d"), ord("D")]] = 6  # \uD800 and above are halves of characters
    allow(6, ord("0"), ord("7"), 4)
    allow(START, 0xC2, 0xDF, 7)
    for lead, then, low, high in ((0xE0, 10, 0xA0, 0xBF), (0xED, 11, 0x80, 0x9F)):
        table[START, lead] = then
        allow(then, low, high, 7)
    for low, high in ((0xE1, 0xEC), (0xEE, 0xEF)):
        allow(START, low, high, 8)
    for lead, then, low, high in ((0xF0, 12, 0x90, 0xBF), (0xF4, 13, 0x80, 0x8F)):
        table[START, lead] = then
        allow(then, low, high, 8)
    allow(START, 0xF1, 0xF3, 9)
    for state, then in ((7, START), (8, 7), (9, 8)):
        allow(state, 0x80, 0xBF, then)
    table[CLOSED, list(AFTER)] = CLOSED
    return table


TRANSITIONS = _transitions()


@dataclass(frozen=True)
class Steps:
    """Where every token leads from one state."""

    states: Int[np.ndarray, " vocab"]
    """State behind the token; `_BROKEN` where it cannot stand."""
    characters: Int[np.ndarray, " vocab"]
    """Characters of the string that begin in it."""

    def allowed(self, most: int, least: int) -> Bool[np.ndarray, " vocab"]:
        """Tokens with at most so many characters; those that close the string have at least so many."""
        fits = (self.states != _BROKEN) & (self.characters <= most)
        return fits & ~((self.states == CLOSED) & (self.characters < least))


class StringTokens:
    """The automaton run over a vocabulary, one state at a time when it is first needed."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        self._texts = texts
        self._steps: dict[tuple[int, bool], Steps] = {}

    def steps(self, state: int, opening: bool) -> Steps:
        """opening: the first token of a string, whose blank in front is thrown away (it only says that a word begins)."""
        key = (state, opening)
        if key not in self._steps:
            self._steps[key] = self._run(state, opening)
        return self._steps[key]

    @cached_property
    def _lengths(self) -> Int[np.ndarray, " vocab"]:
        return np.array([0 if text is None else len(text) for text in self._texts])

    @cached_property
    def _bytes(self) -> UInt8[np.ndarray, "vocab place"]:
        matrix = np.zeros((len(self._texts), _LONGEST), np.uint8)
        for row, text in enumerate(self._texts):
            if text is not None:
                matrix[row, : len(text)] = list(text[:_LONGEST])
        return matrix

    def _run(self, state: int, opening: bool) -> Steps:
        letters, lengths = self._bytes, self._lengths
        begins = opening & (letters[:, 0] == ord(" "))
        usable = (lengths > begins) & (lengths <= _LONGEST)
        states = np.where(usable, state, _BROKEN)
        characters = np.zeros(len(lengths), np.int64)
        for place in range(min(_LONGEST, int(lengths.max(initial=0)))):
            here = (place < lengths) & ~(begins & (place == 0)) & (states != _BROKEN)
            after = TRANSITIONS[states, letters[:, place]]
            characters += here & (states == START) & (after != CLOSED)
            states = np.where(here, after, states)
        return Steps(states, characters)


def walk(state: int, text: bytes) -> tuple[int, bytes]:
    """The state behind a token's bytes, and those of them that belong to the string."""
    for place, byte in enumerate(text):
        state = int(TRANSITIONS[state, byte])
        if state == CLOSED:
            return state, text[:place]
    return state, text


def finished(text: bytes) -> bytes:
    """The part of a string's bytes up to its last whole character or escape."""
    state, end = START, 0
    for place, byte in enumerate(text):
        state = int(TRANSITIONS[state, byte])
        end = place + 1 if state == START else end
    return text[:end]
