"""Tables of text: aligned, and honest about what was not computed."""

from __future__ import annotations

from typing import Any

from pipelines.summary import curve_lines, discovery_summary, evaluation_summary, table

POINT = {"size": 0.1, "edges": 17, "faithfulness": 0.5, "low": None, "high": None, "completeness": None, "random": None}
EVALUATION: dict[str, Any] = {
    "curve": [POINT, POINT | {"size": 1.0, "edges": 1234, "low": 0.25, "high": 1.5, "random": -0.125, "train": 0.75}],
    "circuit": POINT,
    "cmd": 0.1239,
    "cpr": 0.9,
    "cmd_log": 1.0,
    "pairs": 12,
    "metric": "logit-diff",
    "ablation": "zero",
}
RUN: dict[str, Any] = {
    "task": {"name": "t", "metric": "logit-diff", "train_pairs": 30, "held_out_pairs": 12},
    "model": {"name": "m", "edges": 172},
    "config": {"method": {"name": "eap"}, "ablation": "zero", "evaluation": {"holdout": 0.3}},
    "circuit": {"selected": 19, "edges": 17},
    "seconds": {"model": 1.0, "scores": 0.01, "evaluation": 2.0, "check": 0.001},
}


def test_columns_are_aligned() -> None:
    lines = table([("a", "bb", "c"), ("aaa", "b", "")], left=1)
    assert lines == ["a    bb  c", "aaa   b"]


def test_what_was_not_computed_is_a_dash() -> None:
    head, first, second = curve_lines(EVALUATION)
    assert first.split() == ["10", "%", "17", "0.50", "-", "-", "-"]
    assert second.split() == ["100", "%", "1,234", "0.50", "[0.25,", "1.50]", "-", "-0.12", "0.75"]
    assert head.split() == ["size", "edges", "faithfulness", "interval", "completeness", "random", "train"]


def test_the_table_of_discover_has_what_one_looks_for() -> None:
    text = discovery_summary(RUN, EVALUATION, ["scores"], [])
    assert "17 of 172 edges (9.9 %); 2 dead ends dropped" in text
    assert "30 pairs scored, 12 held out" in text
    assert "CMD           0.124" in text
    assert "scores 0.0 (stored)" in text
    assert "check" not in text
    empty = discovery_summary(RUN | {"circuit": {"selected": 2, "edges": 0}}, EVALUATION, [], [])
    assert "no path from the input to the logits" in empty
    same = RUN | {"config": RUN["config"] | {"evaluation": {"holdout": 0.0}}}
    assert "both scored and evaluated on" in discovery_summary(same, EVALUATION, [], [])


def test_rivals_and_auroc_are_shown_when_they_are_there() -> None:
    rivals = {"random": [0.0, 0.5], "percentile_95": 0.475}
    text = evaluation_summary(EVALUATION | {"rivals": rivals, "auroc": 0.8125})
    assert "0.25  (mean of 2 random circuits of whole paths, no smaller; 95th percentile 0.47)" in text
    assert "AUROC         0.812" in text
    assert "AUROC" not in evaluation_summary(EVALUATION)


def test_tests_and_warnings_are_said() -> None:
    minimality = {"name": "minimality", "adjusted": 0.001, "passed": False, "superfluous": ["m0->m1"], "count": 17}
    tests = [{"name": "equivalence", "adjusted": 0.5, "passed": True}, minimality]
    own = POINT | {"train": 0.875}
    text = evaluation_summary(EVALUATION | {"circuit": own, "tests": tests, "warnings": ["too few pairs"]})
    assert "0.50  (0.88 on pairs that were scored)" in text
    assert "tests         equivalence passed (p 0.5)" in text
    assert "minimality FAILED (p 0.001), 1 of 17 edges matter less than random ones" in text
    assert "WARNING       too few pairs" in text


def test_what_a_method_says_of_its_run_is_shown() -> None:
    def lines(name: str, facts: dict[str, Any]) -> str:
        config = RUN["config"] | {"method": {"name": name}}
        return discovery_summary(RUN | {"config": config, "method": facts}, EVALUATION, [], [])

    assert "tau           0.0123  (17 edges kept; 1,234 circuits run)" in lines(
        "acdc", {"tau": 0.01234, "kept": 17, "runs": 1234}
    )
    verified = {"exact": 40, "edges": 172, "confidence": 0.9, "largest_bound": 0.05, "uncertain": 3}
    text = lines("screen-verify", verified)
    assert "exact         40 of 172 edges; the others within 0.05 of their score at 90%, 3 of them" in text
    assert "172 of 172 edges\n" in lines("screen-verify", verified | {"exact": 172})
    backups = [{"name": f"a1.h{i}", "alone": 0.1, "conditional": 0.9} for i in range(7)]
    text = lines("conditional", {"ablated": ["a0.h1", "a0.h2"], "backups": backups})
    assert "ablated       a0.h1, a0.h2" in text
    assert "backups       a1.h0 0.10 -> 0.90, " in text and "a1.h4 0.10 -> 0.90 and 2 more" in text
    assert "backups       none" in lines("conditional", {"ablated": ["a0.h1"], "backups": []})
    assert lines("eap", {"tau": 1}) == discovery_summary(RUN, EVALUATION, [], [])
