"""The causal test: a label says what changing its node does to the task; here that is held against what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from graphs.evidence import CausalEffect, Evidence
from graphs.label import Expectation, Label

SMALL = 0.02
"""Share of the gap between clean and corrupt below which a change is none."""
_ERRORS = 2.0
"""Standard errors that a change must exceed to be one."""


def judge_expectation(expects: Expectation, effects: Iterable[CausalEffect]) -> Expectation:
    """The expectation with what was measured. Unmeasured (None) where no effect of the same change has a known gap.

    `measured` is the change of the metric as a share of the gap; with several tasks that of the largest change against
    its error. `down` and `up` pass when the change has that sign, exceeds twice its standard error and is at least `SMALL`
    of the gap; `none` passes when it does not.
    """
    usable = [effect for effect in effects if effect.change == expects.change and effect.gap]
    if not usable:
        return replace(expects, measured=None, passed=None)
    effect = max(usable, key=lambda one: abs(one.after - one.before) / max(one.stderr, 1e-12))
    assert effect.gap
    change = (effect.after - effect.before) / effect.gap
    real = abs(effect.after - effect.before) > _ERRORS * effect.stderr and abs(change) >= SMALL
    found = ("up" if change > 0 else "down") if real else "none"
    return replace(expects, measured=round(change, 6), passed=found == expects.direction)


def judged(label: Label, evidence: Evidence) -> Label:
    """The label with its causal test done, if it states an expectation."""
    if label.expects is None:
        return label
    return replace(label, expects=judge_expectation(label.expects, evidence.causal))
