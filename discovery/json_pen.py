"""The parts of JSON that a model chooses, token by token: one of several texts, a string, a number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from discovery.json_form import Number, Text
from discovery.json_number import can_begin, completed, is_whole
from discovery.json_string import CLOSED, START, StringTokens, finished, walk
from discovery.token_bytes import TokenBytes

STRING_TOKENS = 64
"""Most tokens of a string without `maxLength`; no string takes more than half of those that are left."""
_ENDINGS = (b"", b",", b"}", b"]", b":", b"\n", b" ", b"},", b"],", b"}\n", b",\n", b"}}", b"]}")
_NO_LIMIT = 10**9
_NUMERIC = set(b"0123456789-.")


@runtime_checkable
class Voice(Protocol):
    """The model, as far as writing needs it (`TokenStream`)."""

    left: int

    @property
    def spent(self) -> bool:
        """Whether the model may say nothing more; the shortest ending is written then."""
        ...

    def append(self, ids: Iterable[int]) -> None:
        """Says tokens."""
        ...

    def draw(self, allowed: Bool[np.ndarray, " vocab"] | Sequence[int] | None = None) -> int:
        """One of the allowed tokens, which is not yet said."""
        ...

    def weigh(self, groups: Sequence[Sequence[int]]) -> int:
        """One of several sets of tokens, by their probability."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """What writing needs to know of the tokens; made once for a model."""

    tokens: TokenBytes
    """The bytes of each."""
    strings: StringTokens
    """What each does inside a string."""
    numbers: tuple[int, ...]
    """Tokens of digits, signs and points."""
    after: tuple[int, ...]
    """Tokens that can stand behind a number."""
    ends: frozenset[int]
    """Tokens that end a reply."""
    encode: Callable[[str], Sequence[int]]
    """The tokens of a text in the middle of another."""

    @classmethod
    def of(cls, tokens: TokenBytes, ends: Iterable[int], encode: Callable[[str], Sequence[int]]) -> Vocabulary:
        """Sorts the tokens."""
        texts = tokens.texts
        last = frozenset(end for end in ends if 0 <= end < len(texts))
        numbers = [
            i for i, t in enumerate(texts) if t and len(t) < 32 and t.lstrip(b" ") and set(t.lstrip(b" ")) <= _NUMERIC
        ]
        after = {i for ending in _ENDINGS[1:] for i in tokens.spellings.get(ending, ())} | last
        return cls(tokens, StringTokens(texts), tuple(numbers), tuple(sorted(after)), last, encode)


class Pen:
    """Writes what is certain, and lets the model choose what is not."""

    def __init__(self, voice: Voice, vocabulary: Vocabulary, emit: Callable[[bytes], None]) -> None:
        """emit: is given what is written, piece by piece."""
        self.voice = voice
        self.vocabulary = vocabulary
        self.emit = emit
        self.shortened = False
        """Whether the voice was spent when it was asked."""
        self.cut = 0
        """Strings that were closed because they had had their share of the tokens."""
        self._ahead = b""  # written already, for all forms that are still possible begin so

    def force(self, text: str) -> None:
        """Writes a text, less what is written already."""
        rest = text.encode()
        shared = min(len(rest), len(self._ahead))
        assert rest[:shared] == self._ahead[:shared]
        self._ahead = self._ahead[shared:]
        self._put(rest[shared:])

    def _put(self, text: bytes) -> None:
        if text:
            self.emit(text)
            self._say(text)

    def _say(self, text: bytes) -> None:
        if not self.voice.spent:
            self.voice.append(self.vocabulary.encode(text.decode(errors="ignore")))

    def _taken_ahead(self) -> bytes:
        """What is written already of the value that comes next; from here on its writer knows."""
        ahead, self._ahead = self._ahead, b""
        return ahead

    def may_choose(self) -> bool:
        """Whether the model may still choose; if not, `shortened` is set."""
        if self.voice.spent:
            self.shortened = True
        return not self.voice.spent

    def possible(self, groups: Sequence[Sequence[bytes]]) -> list[int]:
        """Which of several sets of beginnings go on from what is written ahead."""
        return [place for place, group in enumerate(groups) if self._rests(group)]

    def _rests(self, texts: Sequence[bytes]) -> list[bytes]:
        """What is left of the texts that go on from what is written ahead."""
        ahead = self._ahead
        return [t[len(ahead) :] for t in texts if t.startswith(ahead) or ahead.startswith(t)]

    def decide(self, groups: Sequence[Sequence[bytes]]) -> int:
        """Which of several sets of beginnings the model prefers, letter by letter where it must be.

        What those that are left share is written ahead. Where nothing tells them apart it is the first.
        """
        rests = {place: self._rests(groups[place]) for place in self.possible(groups)}
        while len(rests) > 1:
            shared = _whole(_shared([text for group in rests.values() for text in group]))
            self._put(shared)
            self._ahead += shared
            rests = {place: [text[len(shared) :] for text in group] for place, group in rests.items()}
            if not all(all(group) for group in rests.values()):
                break
            classes = _classes(rests)
            ids = [sorted({i for text in texts for i in self._begin(text)}) for texts in map(_texts, classes)]
            chosen = classes[self.voice.weigh(ids)]
            if len(classes) == 1:  # they part within a character
                break
            rests = chosen
        return min(rests)

    def _begin(self, text: bytes) -> set[int]:
        """Tokens with which a text can begin, or which say it whole and what may follow."""
        found = self.vocabulary.tokens.prefixes(text)
        spellings = self.vocabulary.tokens.spellings
        return found | {i for ending in _ENDINGS if ending for i in spellings.get(text + ending, ())}

    def choice(self, options: Sequence[str]) -> None:
        """One of several JSON texts, by tokens that lead to one of them until a single one is left."""
        done = self._taken_ahead()
        left = [option.encode() for option in options]
        left = [option for option in left if option.startswith(done)]
        while len(left) > 1 and self.may_choose():
            shared = _whole(_shared(left))
            self._put(shared[len(done) :])
            left, done = self._narrow(left, max(done, shared, key=len))
        self._put(left[0][len(done) :])

    def _narrow(self, left: list[bytes], done: bytes) -> tuple[list[bytes], bytes]:
        """The options that fit one more token of the model's, and what of them is written then."""
        rests = [option[len(done) :] for option in left]
        in_word = done.endswith(b'"')  # where many vocabularies have words with a blank in front only
        fitting: dict[int, bytes] = {}
        for rest in rests:
            for i in self._begin(rest):
                fitting[i] = self.vocabulary.tokens.texts[i] or b""
            if in_word:
                fitting |= {i: (self.vocabulary.tokens.texts[i] or b"")[1:] for i in self._begin(b" " + rest)}
            if not rest:
                fitting |= dict.fromkeys(self.vocabulary.after, b"")
        fitting = {i: text for i, text in fitting.items() if text or b"" in rests}
        if not fitting:
            return left[:1], done
        picked = self.voice.draw(sorted(fitting))
        text = fitting[picked]
        whole = [option for option, rest in zip(left, rests) if text.startswith(rest) and (rest or not text)]
        going_on = [option for option, rest in zip(left, rests) if rest.startswith(text) and len(rest) > len(text)]
        if whole and (not going_on or not text):
            return [max(whole, key=len)], done
        written = done + text
        # A token may end within a character; then the next round writes on from the characters before it.
        self.voice.append([picked])
        self.emit(text)
        return [option for option in left if option.startswith(written)], written

    def string(self, node: Text) -> None:
        """Token by token, closed by the model, at `maxLength`, or when it has had its share of tokens."""
        self.force('"')
        share = max(1, self.voice.left // 2)
        share = min(share, STRING_TOKENS) if node.most is None else share
        most = _NO_LIMIT if node.most is None else node.most
        state, count, pending = START, 0, b""
        for place in range(share + 1):
            if (state == START and count >= most) or not self.may_choose():
                break
            if place == share:
                self.cut += 1
                break
            steps = self.vocabulary.strings.steps(state, opening=place == 0)
            allowed = steps.allowed(most - count, node.least - count)
            ends = self.vocabulary.ends if state == START and count >= node.least else frozenset()
            allowed[list(ends)] = True
            if not allowed.any():
                break
            token = self.voice.draw(allowed)
            if token in ends:
                break
            text = self.vocabulary.tokens.texts[token] or b""
            state, text = walk(state, text[1:] if place == 0 and text.startswith(b" ") else text)
            count += int(steps.characters[token])
            pending += text
            if state == CLOSED:
                self._say(text)
                break
            self.voice.append([token])
            if state == START:
                self.emit(pending)
                pending = b""
        self.emit(finished(pending))
        count -= state not in (START, CLOSED)
        self.force(" " * max(0, node.least - count) + '"')

    def number(self, node: Number) -> None:
        """Token by token, as long as a number within the bounds begins so."""
        text = self._taken_ahead().decode()
        while self.may_choose():
            fitting: dict[int, str] = {}
            for i in self.vocabulary.numbers:
                piece = (self.vocabulary.tokens.texts[i] or b"").decode()
                piece = piece.lstrip(" ") if not text else piece
                if can_begin(node, text + piece):
                    fitting[i] = piece
            ended = is_whole(node, text)
            if not fitting:
                break
            token = self.voice.draw(sorted({*fitting, *(self.vocabulary.after if ended else ())}))
            if token not in fitting:
                break
            self.voice.append([token])
            self.emit(fitting[token].encode())
            text += fitting[token]
        if not is_whole(node, text):
            self._put(completed(node, text)[len(text) :].encode())


def _classes(rests: Mapping[int, Sequence[bytes]]) -> list[dict[int, list[bytes]]]:
    """Texts sorted by their first byte; those that only one and the same group has stand together."""
    by_byte: dict[int, dict[int, list[bytes]]] = {}
    for place, texts in rests.items():
        for text in texts:
            by_byte.setdefault(text[0], {}).setdefault(place, []).append(text)
    found: dict[tuple[int, ...], dict[int, list[bytes]]] = {}
    for byte, groups in by_byte.items():
        (place, texts), *others = groups.items()
        if others:
            found[(-1, byte)] = groups
        else:
            found.setdefault((place,), {place: []})[place].extend(texts)
    return list(found.values())


def _texts(groups: Mapping[int, Sequence[bytes]]) -> list[bytes]:
    return [text for texts in groups.values() for text in texts]


def _shared(texts: Sequence[bytes]) -> bytes:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    for place, byte in enumerate(first):
        if place >= len(last) or last[place] != byte:
            return first[:place]
    return first


def _whole(text: bytes) -> bytes:
    """The text, less an unfinished character at its end."""
    return text.decode(errors="ignore").encode()
