"""Which span each token of a prompt belongs to, from ranges of characters or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from discovery.task import BadTask, PromptPair, Range, Span

SpanMode = Literal["none", "task", "positions"]
"""none: one graph for all positions. task: the pairs' own spans. positions: every position is a span."""
Offsets = Sequence[tuple[int, int]]
Names = tuple[int | str, ...]


def name_tokens(spans: Sequence[tuple[str, Range]], count: int, lead: int) -> Names:
    """The span of every token of a prompt of `count` tokens.

    spans: names with ranges of tokens. lead: tokens that stand in front of the prompt. Tokens outside all spans belong to
    `bos` (the leading ones), `start` (before the first span), `after_NAME`; the last token of a prompt is `end`.
    """
    names = ["bos"] * lead + ["start"] * (count - lead)
    previous = None
    for name, (start, stop) in sorted(spans, key=lambda one: one[1]):
        if previous is not None:
            names[previous[1] : start] = [f"after_{previous[0]}"] * (start - previous[1])
        names[start:stop] = [name] * (stop - start)
        previous = name, stop
    if previous is not None:
        names[previous[1] :] = [f"after_{previous[0]}"] * (count - previous[1])
    if previous is None or previous[1] < count:
        names[-1] = "end"
    return tuple(names)


def token_ranges(
    spans: Sequence[Span], side: Literal["clean", "corrupt"], offsets: Offsets | None, shift: int, lead: int, count: int
) -> list[tuple[str, Range]]:
    """Names with ranges of tokens in one prompt. Raises BadTask naming a span without tokens of its own.

    offsets: characters of every token of the text; shift: where in it the prompt begins. lead: tokens in front of the text.
    A token that two spans share belongs to the first of them.
    """
    found: list[tuple[str, Range]] = []
    taken: set[int] = set()
    placed = [(span, place) for span in spans if (place := getattr(span, side)) is not None]
    for span, (start, stop) in sorted(placed, key=lambda one: one[1]):
        if span.unit == "tokens":
            start, stop = start + lead, stop + lead
            own = list(range(start, stop)) if stop <= count else []
        elif offsets is None:
            raise BadTask(
                f"span {span.name!r}: this tokenizer does not say where its tokens stand: give ranges of tokens"
            )
        else:
            ends = enumerate(offsets, lead)
            own = [token for token, (first, last) in ends if first < stop + shift and last > start + shift]
        own = [token for token in own if token not in taken]
        if not own:
            raise BadTask(f"span {span.name!r} has no token of its own in the {side} prompt")
        taken.update(own)
        found.append((span.name, (own[0], own[-1] + 1)))
    return found


def spans_of_pair(
    pair: PromptPair, clean: list[tuple[str, Range]], corrupt: list[tuple[str, Range]], counts: Range, leads: Range
) -> tuple[Names, Names | None]:
    """The span of every token of both prompts. counts, leads: tokens of clean and corrupt, and how many stand in front.

    None for a corrupt prompt of another length whose spans are not all given. Raises BadTask for a pair without spans.
    """
    if not pair.spans:
        raise BadTask("this pair has no spans: give it some, or use --spans positions")
    known = {name for name, _ in corrupt}
    missing = [(name, place) for name, place in clean if name not in known]
    own = name_tokens(clean, counts[0], leads[0])
    if missing and counts[0] != counts[1]:
        return own, None
    return own, name_tokens(corrupt + missing, counts[1], leads[1])
