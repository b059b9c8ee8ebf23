"""What a head is called, by what was measured of it on random repeats, on the task and on text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from graphs.evidence import AttentionPair, HeadEvidence
from graphs.label import Role
from labelers.rules.rule import show

LEAST = 0.3
"""Score from which a head has a role: mean attention to the fitting token, or share of the effect."""
_LEAST_ON_TEXT = 0.4
"""The same where it was measured on text: there the tokens to choose from are few."""
_MEASURED = {"": ("", LEAST), "text_": (" on text", _LEAST_ON_TEXT), "task_": (" on the task", _LEAST_ON_TEXT)}
"""What stands in front of a score's name; what is said of it, and what it must reach. Random repeats come first: on text
several roles may look at the same token."""
_RESTS = 0.7
"""Mean attention to the first token from which a head is said to rest there."""
_SHARE = 0.6
"""Share of the attention in its strongest places that must agree."""


@dataclass(frozen=True)
class HeadRole:
    """A role that a score stands for."""

    text: str
    """The label."""
    role: Role
    """What such a head does."""
    description: str
    """A sentence."""
    ablated: str
    """What ablating it does to a task that it takes part in: `down`, `up`; empty where that hangs on what it lowers."""


ROLES_OF_HEADS: dict[str, HeadRole] = {
    "name_mover": HeadRole(
        "name mover head", "moves", "Attends from the end to the answer's earlier mention and raises it.", "down"
    ),
    "copy_suppression": HeadRole(
        "copy suppression head", "suppresses", "Attends to an earlier mention of a token and lowers it.", ""
    ),
    "induction": HeadRole(
        "induction head", "moves", "Attends to what followed the token's earlier occurrence.", "down"
    ),
    "duplicate_token": HeadRole(
        "duplicate token head", "detects", "Attends to the same token's earlier occurrence.", "down"
    ),
    "previous_token": HeadRole("previous token head", "moves", "Attends to the token before.", "down"),
}
"""By the name of the score in `HeadEvidence.scores`; among equal scores the first is taken."""


@dataclass(frozen=True)
class Named:
    """What a head is called and why."""

    rule: str
    """What stands in `Label.rule`."""
    text: str
    """The label."""
    role: Role
    """What it does."""
    description: str
    """Sentences."""
    value: float
    """The measured score or share, 0 to 1."""
    cites: tuple[str, ...] = ()
    """Pairs that show it."""
    ablated: str = ""
    """What ablating it is expected to do; empty: the role does not say."""


def name_head(head: HeadEvidence) -> Named | None:
    """The head's role; None where no score says that it has one."""
    for place, (where, least) in _MEASURED.items():
        known = {name: head.scores.get(place + name, 0.0) for name in ROLES_OF_HEADS}
        known = {name: value for name, value in known.items() if value >= least}
        if known:
            return _role(head, known, where)
    if head.first_token >= _RESTS:
        text = f"Mean attention to the first token {head.first_token:.2f}."
        return Named("head:first_token", "rests on first token", "unclear", text, head.first_token)
    return None


def _role(head: HeadEvidence, known: Mapping[str, float], where: str) -> Named:
    best = max(known, key=lambda name: known[name])
    line = ROLES_OF_HEADS[best]
    others = [f"{ROLES_OF_HEADS[name].text} ({value:.2f})" for name, value in known.items() if name != best]
    more = f" Also measured: {', '.join(others)}." if others else ""
    wrong = head.scores.get("wrong_attention", 0.0)
    if best == "name_mover" and wrong >= 0.5 * head.scores.get("answer_attention", 0.0) > 0:
        more = f" It attends to wrong answers too ({wrong:.2f}).{more}"
    description = f"{line.description} Score {known[best]:.2f}{where}.{more}"
    cites = tuple(pair.id for pair in head.pairs if _FITS[best](pair))[:4] if best in _FITS else ()
    return Named(f"head:{best}", line.text, line.role, description, min(known[best], 1.0), cites, line.ablated)


def by_attention(pairs: tuple[AttentionPair, ...]) -> Named | None:
    """Where the strongest places agree: one distance, or one token that is attended to."""
    total = sum(pair.weight for pair in pairs)
    for rule, key, say in _AGREEMENTS:
        weights: Counter[object] = Counter()
        for pair in pairs:
            weights[key(pair)] += pair.weight  # type: ignore[assignment]
        if not weights:
            return None
        value, weight = weights.most_common(1)[0]
        if weight >= _SHARE * total:
            share = weight / total
            cites = tuple(pair.id for pair in pairs if key(pair) == value)[:4]
            description = f"{share:.0%} of the attention in its strongest places."
            return Named(f"{rule}:{value}", say(value), "moves", description, share, cites)
    return None


def _distance(value: object) -> str:
    return {0: "attends to the token itself", 1: "attends to token before"}.get(
        value if isinstance(value, int) else -1, f"attends {value} tokens back"
    )


_AGREEMENTS: tuple[tuple[str, Callable[[AttentionPair], object], Callable[[object], str]], ...] = (
    ("attends", lambda pair: pair.key, lambda value: f'attends to "{show(str(value))}"'),
    ("distance", lambda pair: pair.distance, _distance),
)
_FITS: dict[str, Callable[[AttentionPair], bool]] = {
    "previous_token": lambda pair: pair.distance == 1,
    "duplicate_token": lambda pair: pair.distance > 0 and pair.query[-1:] == (pair.key,),
}
