"""Windows of text as token ids, and how evidence shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from discovery.evidence_settings import SPLITS
from discovery.token_text import token_texts
from graphs.evidence import Context, ContextKind, Example, Split


@dataclass(frozen=True)
class Passage:
    """A window of text before it has a number: what `Context` says of it."""

    kind: ContextKind
    """Why it is here."""
    document: int
    """Number of the document."""
    start: int
    """Position of the first token in it."""
    ids: tuple[int, ...]
    """Token ids."""
    activations: tuple[float, ...]
    """Of the node, for each."""
    following: int | None = None
    """Token behind the peak."""
    quantile: float | None = None
    """Of a `spread` window."""


def examples(passages: Sequence[Passage], texts: Texts) -> tuple[Example, ...]:
    """The passages that are not shown, as evidence keeps them."""
    found = []
    for one in passages:
        places = tuple(place for place, value in enumerate(one.activations) if value) if one.kind == "spread" else ()
        values = tuple(float(f"{one.activations[place]:.4g}") for place in places)
        tokens = tuple(map(texts, one.ids))
        found.append(Example(one.document, tokens, places, values, hard=one.kind == "hard-negative"))
    return tuple(found)


class Texts:
    """Texts of tokens, made when they are first asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """The text of one token; hostile."""
        if token not in self._known:
            self._known[token] = token_texts([token], self._tokenizer)[0]
        return self._known[token]


def contexts(passages: Mapping[Split, Sequence[Passage]], texts: Texts) -> tuple[Context, ...]:
    """The passages as evidence shows them, numbered. Asserts that no document explains and scores."""
    sides = [{passage.document for passage in passages.get(split, ())} for split in SPLITS]
    assert not sides[0] & sides[1], f"document {min(sides[0] & sides[1])} would both explain and score"
    found: list[Context] = []
    for split in SPLITS:
        for one in passages.get(split, ()):
            found.append(
                Context(
                    id=f"c{len(found) + 1}",
                    kind=one.kind,
                    split=split,
                    document=one.document,
                    start=one.start,
                    tokens=tuple(map(texts, one.ids)),
                    activations=one.activations,
                    following="" if one.following is None else texts(one.following),
                    quantile=one.quantile,
                )
            )
    return tuple(found)
