"""Reasons, in words, not to believe in a circuit: read from the numbers of its evaluation. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

KNOWN = 0.75
"""Share of the pairs whose answer the model must know; guessing one of two answers gives 0.5."""
FEW_PAIRS = 20
"""Fewer pairs than this say little."""
FAITHFUL = 0.5
"""A circuit explains more than this, and the rest of the model less."""
MOST_EDGES = 0.5
"""A larger share of the edges is no circuit."""
WIDE = 0.3
"""Widest interval of the faithfulness."""
RANDOM = 0.1
"""Largest share of random circuits that may do as well."""
DROP = 0.1
"""How much further from 1 the faithfulness may be on held-out pairs than on those that were scored."""
STABLE = 0.5
"""Smallest mean overlap (Jaccard) of the edges selected in two resamples of the pairs, or with two seeds."""

Evaluation = Mapping[str, Any]


def doubts(evaluation: Evaluation) -> tuple[str, ...]:
    """One sentence for every reason, none for a circuit that the numbers support. evaluation: as evaluation.json."""
    return tuple(said for said in (check(evaluation) for check in CHECKS) if said)


def _known(evaluation: Evaluation) -> str | None:
    if evaluation["known"] >= KNOWN:
        return None
    return (
        f"the model itself knows the answer of only {evaluation['known']:.0%} of the pairs (below {KNOWN:.0%}): "
        "there may be nothing to find a circuit for"
    )


def _few(evaluation: Evaluation) -> str | None:
    pairs = evaluation["pairs"]
    return f"evaluated on only {pairs} pairs (fewer than {FEW_PAIRS})" if pairs < FEW_PAIRS else None


def _size(evaluation: Evaluation) -> str | None:
    own = evaluation["circuit"]
    if not own["edges"]:
        return "the circuit has no path from the input to the logits"
    if own["size"] > MOST_EDGES:
        return f"the circuit keeps {own['size']:.0%} of all edges: it is the model more than a part of it"
    return None


def _unfaithful(evaluation: Evaluation) -> str | None:
    value = evaluation["circuit"]["faithfulness"]
    return f"the circuit's faithfulness is {value:.2f}, not above {FAITHFUL:g}" if value <= FAITHFUL else None


def _incomplete(evaluation: Evaluation) -> str | None:
    value = evaluation["circuit"].get("completeness")
    if value is None or value < FAITHFUL:
        return None
    return f"the model without the circuit still has a faithfulness of {value:.2f}: the task also runs elsewhere"


def _wide(evaluation: Evaluation) -> str | None:
    low, high = (evaluation["circuit"].get(end) for end in ("low", "high"))
    if low is None or high is None or high - low <= WIDE:
        return None
    return f"the interval of the faithfulness, [{low:.2f}, {high:.2f}], is wider than {WIDE:g}: use more pairs"


def _random(evaluation: Evaluation) -> str | None:
    rivals = evaluation.get("rivals")
    if rivals is None:
        return None
    distance = abs(1 - rivals["faithfulness"])
    as_good = sum(abs(1 - value) <= distance for value in rivals["random"]) / len(rivals["random"])
    if as_good <= RANDOM:
        return None
    return f"{as_good:.0%} of {len(rivals['random'])} random circuits of this size are as close to the model"


def _train(evaluation: Evaluation) -> str | None:
    own = evaluation["circuit"]
    train, held_out = own.get("train"), own["faithfulness"]
    if train is None or abs(1 - held_out) - abs(1 - train) <= DROP:
        return None
    return f"the faithfulness is {train:.2f} on pairs that were scored, but {held_out:.2f} on held-out ones"


def _unstable(evaluation: Evaluation) -> str | None:
    for kind, words in (("resamples", "resamples of the pairs"), ("seeds", "seeds")):
        overlap = (evaluation.get("stability") or {}).get(kind)
        if overlap and overlap["mean"] < STABLE:
            return f"two {words} agree on only {overlap['mean']:.0%} of the edges (Jaccard, below {STABLE:.0%})"
    return None


CHECKS: tuple[Callable[[Evaluation], str | None], ...] = (
    _known,
    _few,
    _size,
    _unfaithful,
    _incomplete,
    _wide,
    _random,
    _train,
    _unstable,
)
"""Every check, in the order in which their sentences stand."""
