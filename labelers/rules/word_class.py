"""What kind of word the token is, by its spelling or by a short list of English function words."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from labelers.rules.rule import Mask, Rule
from labelers.text import Text


def _listed(words: str) -> Callable[[str], bool]:
    listed = frozenset(words.split())
    return lambda token: token.strip().lower() in listed


_CLASSES: dict[str, Callable[[str], bool]] = {
    "number": lambda token: token.strip().isdigit(),
    "punctuation": lambda token: token.strip() != "" and not any(map(str.isalnum, token)),
    "quotation mark": _listed("\" ' “ ” ‘ ’ « » `"),
    "end of sentence": _listed('. ! ? ." !" ?"'),
    "line break": lambda token: "\n" in token,
    "capitalised word": lambda token: token.strip()[:1].isupper(),
    "capitals": lambda token: len(token.strip()) > 1 and token.isupper(),
    "start of word": lambda token: token[:1] == " " and token[1:2].isalpha(),
    "inside of word": lambda token: token[:1].isalpha(),
    "single letter": lambda token: len(token.strip()) == 1 and token.strip().isalpha(),
    "pronoun": _listed(
        "i you he she it we they me him her us them his hers its my your our their this that these those"
    ),
    "article": _listed("a an the"),
    "preposition": _listed(
        "of in on at to from by with for about into over under near behind beside opposite around above below between"
    ),
    "conjunction": _listed("and or but so because if when while after before though although as that"),
    "form of be": _listed("is are was were be been being am isn't aren't wasn't weren't"),
    "form of have": _listed("has have had having"),
    "question word": _listed("who what when where why how which whose"),
    "number word": _listed("one two three four five six seven eight nine ten hundred thousand million"),
    "negation": _listed("not no never none nothing n't don't can't isn't wasn't didn't"),
}
"""Name of the class -> whether a token is of it."""


@lru_cache(maxsize=1 << 16)
def _classes_of(token: str) -> frozenset[str]:
    return frozenset(word for word, test in _CLASSES.items() if test(token))


def _where(text: Text, words: tuple[str, ...]) -> Mask:
    return text.is_one_of([token for token in text.numbers if not _classes_of(token).isdisjoint(words)])


RULE = Rule(_where, lambda text, at: _CLASSES, " or ".join)
