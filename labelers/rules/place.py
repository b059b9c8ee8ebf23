"""Where the token stands: first of a sentence or of a document, or a word that was there before."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from labelers.rules.rule import Mask, Rule
from labelers.text import Text

_ENDS = (".", "!", "?", '."', '!"', '?"', "\n", " .", " !", " ?")
_STARTS = ("<bos>", "<s>", "<|endoftext|>", "<|begin_of_text|>", "[CLS]")


def _sentence(text: Text) -> Mask:
    return text.shifted(text.is_one_of((*_ENDS, *_STARTS)), -1)


def _document(text: Text) -> Mask:
    return text.shifted(text.is_one_of(_STARTS), -1)


def _capitalised_inside(text: Text) -> Mask:
    capital = text.is_one_of([token for token in text.numbers if token.strip()[:1].isupper()])
    return capital & ~_sentence(text)


def _repeated(text: Text) -> Mask:
    both = text.first * len(text.numbers) + text.codes
    result = np.ones(len(text.tokens), dtype=bool)
    result[np.unique(both, return_index=True)[1]] = False
    return result & text.is_one_of([token for token in text.numbers if any(map(str.isalnum, token))])


def _repeated_name(text: Text) -> Mask:
    return _repeated(text) & _capitalised_inside(text)


_PLACES: dict[str, Callable[[Text], Mask]] = {
    "first of sentence": _sentence,
    "first of document": _document,
    "second of sentence": lambda text: text.shifted(_sentence(text), -1),
    "name": _capitalised_inside,
    "repeated token": _repeated,
    "repeated name": _repeated_name,
    "after repeated token": lambda text: text.shifted(_repeated(text), -1),
    "after name": lambda text: text.shifted(_capitalised_inside(text), -1),
}
"""Name of the place -> which tokens stand there."""


def _where(text: Text, words: tuple[str, ...]) -> Mask:
    masks = [_PLACES[word](text) for word in words if word in _PLACES]
    return np.logical_or.reduce([np.zeros(len(text.tokens), dtype=bool), *masks])


RULE = Rule(_where, lambda text, at: _PLACES, " or ".join)
