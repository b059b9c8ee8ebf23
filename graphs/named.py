"""What exports say of a label beside its text: role, rule, scores, and whether its causal test was passed."""

from __future__ import annotations

from typing import Literal

from graphs.escape import clean, shorten
from graphs.label import Label, Score

Verdict = Literal["passed", "failed"]
SIGNS: dict[Verdict, str] = {"passed": "✓", "failed": "✗"}
"""How texts show the outcome of a causal test; pictures draw it."""
MEANINGS: dict[Verdict, str] = {"passed": "causal test of the name passed", "failed": "failed"}
"""What legends say of it."""
COLOURS: dict[Verdict, str] = {"passed": "#1b7f4b", "failed": "#b3261e"}
"""In pictures, where the sign's shape tells as well."""
_LONGEST = 240


def verdict(label: Label | None) -> Verdict | None:
    """Outcome of the label's causal test; None where there was none."""
    if label is None or label.expects is None or label.expects.passed is None:
        return None
    return "passed" if label.expects.passed else "failed"


def told(label: Label) -> list[str]:
    """The label's facts in lines of plain text, for tooltips; hostile."""
    parts = [label.role, f"by {shorten(label.labeler, 40)}"]
    if label.rule:
        parts.append(f"rule {shorten(label.rule, 120)}")
    if label.confidence is not None:
        parts.append(f"confidence {label.confidence:.2f}")
    lines = [", ".join(parts)]
    if label.description:
        lines.append(shorten(label.description, _LONGEST))
    if label.scores:
        lines.append(", ".join(f"{shorten(name, 30)} {_score(score)}" for name, score in label.scores.items()))
    if label.expects is not None:
        lines.append(f"causal test: {causal_test(label)}")
    return lines


def causal_test(label: Label) -> str:
    """What the label expects of its node's ablation (or swap), and what came of it; empty where it expects nothing."""
    wanted = label.expects
    if wanted is None:
        return ""
    text = f"{wanted.change}, metric expected {'unchanged' if wanted.direction == 'none' else wanted.direction}"
    if wanted.measured is None:
        return f"{text}, not measured"
    return f"{text}, measured {wanted.measured:+.0%} of the gap: {verdict(label)}"


def _score(score: Score) -> str:
    text = f"{score.value:.2f}"
    if score.low is not None and score.high is not None:
        text += f" [{score.low:.2f}, {score.high:.2f}]"
    return text + ("" if score.baseline is None else f" (shuffled {score.baseline:.2f})")


def clean_attributes(label: Label) -> dict[str, str | float | bool]:
    """The label's facts as flat attributes, for graph programs; what is not known is left out. Texts are made
    fit for XML, and stay hostile.

    role, labeler, rule, confidence, abstain, description, causal_test (passed, failed), causal_change, and for each test
    score_X, with score_X_low, _high and _baseline.
    """
    known: dict[str, str | float | bool | None] = {
        "role": label.role,
        "labeler": label.labeler,
        "rule": label.rule or None,
        "description": label.description or None,
        "confidence": label.confidence,
        "abstain": label.abstain,
        "causal_test": verdict(label),
        "causal_change": None if label.expects is None else label.expects.measured,
    }
    for name, score in label.scores.items():
        key = "score_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in name[:30])
        known |= {key: score.value}
        known |= {f"{key}_{part}": getattr(score, part) for part in ("low", "high", "baseline")}
    return {key: clean(value) if isinstance(value, str) else value for key, value in known.items() if value is not None}
