"""Every reason to doubt a circuit is said when its number is bad, and not otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from discovery.doubts import CHECKS, doubts

GOOD: dict[str, Any] = {
    "known": 0.98,
    "pairs": 60,
    "circuit": {
        "size": 0.05,
        "edges": 40,
        "faithfulness": 0.95,
        "low": 0.9,
        "high": 1.0,
        "completeness": 0.1,
        "train": 0.97,
    },
    "rivals": {"faithfulness": 0.95, "random": [0.0, 0.2, 0.1] * 10},
    "stability": {"resamples": {"mean": 0.9}, "seeds": None},
}
BAD = {
    "knows the answer of only 60% of the pairs": {"known": 0.6},
    "only 8 pairs": {"pairs": 8},
    "no path": {"circuit": {"edges": 0}},
    "keeps 70% of all edges": {"circuit": {"size": 0.7}},
    "faithfulness is 0.40, not above 0.5": {
        "circuit": {"faithfulness": 0.4, "train": 0.45},
        "rivals": {"faithfulness": 0.4},
    },
    "still has a faithfulness of 0.80": {"circuit": {"completeness": 0.8}},
    r"\[0.50, 1.20\], is wider than 0.3": {"circuit": {"low": 0.5, "high": 1.2}},
    "33% of 30 random circuits": {"rivals": {"random": [0.0, 0.2, 0.97] * 10}},
    "0.97 on pairs that were scored, but 0.70 on held-out": {"circuit": {"faithfulness": 0.7}},
    "two resamples of the pairs agree on only 30%": {"stability": {"resamples": {"mean": 0.3}}},
    "two seeds agree on only 20%": {"stability": {"seeds": {"mean": 0.2}}},
}


def changed(change: dict[str, Any]) -> dict[str, Any]:
    """The good evaluation with some numbers changed."""
    return {
        key: {**value, **change.get(key, {})} if isinstance(value, dict) else change.get(key, value)
        for key, value in GOOD.items()
    }


def test_a_circuit_that_the_numbers_support_raises_no_doubt() -> None:
    assert doubts(GOOD) == ()
    assert doubts({"known": 1.0, "pairs": 30, "circuit": {"size": 0.1, "edges": 3, "faithfulness": 1.0}}) == ()


@pytest.mark.parametrize("words", BAD)
def test_each_bad_number_is_said_once(words: str) -> None:
    import re

    (said,) = doubts(changed(BAD[words]))
    assert re.search(words, said)
    assert "\n" not in said


def test_every_check_speaks_in_some_case() -> None:
    cases = [changed(change) for change in BAD.values()]
    assert all(any(check(case) for case in cases) for check in CHECKS)
