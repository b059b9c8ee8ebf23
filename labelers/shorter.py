"""Less of a node's evidence, for models whose context cannot hold it all: fewer windows, shorter windows, fewer entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from graphs.evidence import Context, Evidence, HeadEvidence

Item = TypeVar("Item")
_MOST_STEPS = 12
_LEAST_TOKENS, _LEAST_ENTRIES = 8, 2
_LONG = 64
"""Tokens of a window before it is shortened for the first time."""


def shorter_and_shorter(evidence: Evidence) -> Iterator[Evidence]:
    """The evidence as it is, then with about half as much at each step, down to one window of each kind.

    Steps take turns: half of the windows, places and entries, then half of each window's length around its peak. Windows are
    left out evenly over quantiles, entries from the weak end. Windows that score labels are never shown and stay as they are.
    """
    yield evidence
    last = evidence
    for step in range(1, _MOST_STEPS):
        less = _cut(evidence, 2 ** ((step + 1) // 2), _LONG // 2 ** (step // 2))
        if less != last:
            yield less
        last = less


def shown_share(whole: Evidence, part: Evidence) -> str:
    """How much of what may be cited is still there, in words."""
    counts = [len(item.of("explain")) + len(item.head.pairs if item.head else ()) for item in (part, whole)]
    return f"shown {counts[0]} of {counts[1]} windows and places, shortened"


def _cut(evidence: Evidence, parts: int, tokens: int) -> Evidence:
    """One in `parts` windows of each kind, of `tokens` tokens at most; the first of all other entries."""
    kinds = dict.fromkeys(context.kind for context in evidence.of("explain"))
    kept = {id(c) for kind in kinds for c in [c for c in evidence.of("explain") if c.kind == kind][::parts]}
    contexts = [
        context if context.split != "explain" else _around_peak(context, max(tokens, _LEAST_TOKENS))
        for context in evidence.contexts
        if context.split != "explain" or id(context) in kept
    ]
    return replace(
        evidence,
        contexts=tuple(contexts),
        promotes=_first(evidence.promotes, parts),
        suppresses=_first(evidence.suppresses, parts),
        logit_attribution=_first(evidence.logit_attribution, parts),
        inputs=_first(evidence.inputs, parts),
        outputs=_first(evidence.outputs, parts),
        head=None if evidence.head is None else _cut_head(evidence.head, parts, tokens),
    )


def _cut_head(head: HeadEvidence, parts: int, tokens: int) -> HeadEvidence:
    pairs = [replace(pair, query=pair.query[-max(tokens // 4, 2) :]) for pair in _first(head.pairs, parts)]
    return replace(head, pairs=tuple(pairs), ov_up=_first(head.ov_up, parts), qk=_first(head.qk, parts))


def _first(entries: Sequence[Item], parts: int) -> tuple[Item, ...]:
    return tuple(entries[: max(len(entries) // parts, _LEAST_ENTRIES)])


def _around_peak(context: Context, tokens: int) -> Context:
    """The window's `tokens` tokens around its peak, three quarters of them up to it."""
    if len(context.tokens) <= tokens:
        return context
    peak = context.peak
    start = min(max(peak + 1 - tokens * 3 // 4, 0), len(context.tokens) - tokens)
    place = slice(start, start + tokens)
    return replace(
        context, start=context.start + start, tokens=context.tokens[place], activations=context.activations[place]
    )
