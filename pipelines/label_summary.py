"""What `edgewise label` and `edgewise score` say when they are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipelines.label import is_told
from pipelines.summary import table

if TYPE_CHECKING:
    from graphs.label import Label
    from graphs.node import NodeId

_ROWS = 40
_TESTS = ("role", "precision", "recall", "detection", "fuzzing", "intruder", "output")


def label_summary(
    labels: Mapping[NodeId, Label],
    failures: Mapping[NodeId, str] | None = None,
    usage: Mapping[str, float] | None = None,
    shortened: Mapping[NodeId, str] | None = None,
) -> str:
    """A row for every node (the first few of many), then what there is in all."""
    shown = [label for label in labels.values() if is_told(label)]
    tests = [test for test in _TESTS if any(test in label.scores for label in shown)]
    causal = any(label.expects is not None for label in shown)
    rows = [("node", "label", "role", *tests, *(["causal test"] if causal else []))]
    for label in shown[:_ROWS]:
        scores = [f"{label.scores[test].value:.2f}" if test in label.scores else "" for test in tests]
        rows.append((str(label.node), _clean(label.text), label.role, *scores, *([_causal(label)] if causal else [])))
    lines = [*table(rows, left=3)]
    if len(shown) > _ROWS:
        lines.append(f"... and {len(shown) - _ROWS:,} more in labels.json")
    return "\n".join([*lines, "", *_totals(shown, failures or {}, usage or {}, shortened or {})])


def _causal(label: Label) -> str:
    wanted = label.expects
    if wanted is None:
        return ""
    if wanted.passed is None or wanted.measured is None:
        return f"{wanted.change}: {wanted.direction}, not measured"
    return f"{wanted.change}: {wanted.direction}, {wanted.measured:+.0%} ({'passed' if wanted.passed else 'failed'})"


def _totals(
    shown: list[Label],
    failures: Mapping[NodeId, str],
    usage: Mapping[str, float],
    shortened: Mapping[NodeId, str],
) -> list[str]:
    named = [label for label in shown if not label.abstain]
    lines = [f"{len(named)} of {len(shown)} nodes named, {len(shown) - len(named)} unclear"]
    lines += [
        _mean(shown, "detection", "mean balanced accuracy"),
        _mean(shown, "output", "predicted tokens rise above"),
    ]
    lines = list(filter(None, lines))
    tested = [label.expects for label in shown if label.expects is not None and label.expects.passed is not None]
    if tested:
        lines.append(f"causal tests: {sum(bool(one.passed) for one in tested)} of {len(tested)} passed")
    if failures:
        node, reason = next(iter(failures.items()))
        lines.append(f"{len(failures)} failed and keep the rules' name, such as {node}: {_clean(reason)[:120]}")
    if shortened:
        node, what = next(iter(shortened.items()))
        lines.append(f"{len(shortened)} did not fit into the model's context, such as {node}: {what}")
    if usage:
        lines.append(", ".join(f"{name} {value:,.6g}" for name, value in usage.items()))
    return lines


def _mean(shown: list[Label], test: str, what: str) -> str:
    """One line for a test, with its baseline; empty where no label has it."""
    found = [label.scores[test] for label in shown if test in label.scores]
    if not found:
        return ""
    mean = sum(score.value for score in found) / len(found)
    bases = [score.baseline for score in found if score.baseline is not None]
    base = f", shuffled labels {sum(bases) / len(bases):.2f}" if bases else ""
    unit = " of the vocabulary" if test == "output" else ""
    return f"{test}: {what} {mean:.2f}{unit} over {len(found)} labels{base}"


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
