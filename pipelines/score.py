"""`edgewise score`: are the names of a run any good? Held-out text, a judge, and what interventions measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pipelines.clock import Clock
from pipelines.exports import draw_again
from pipelines.label import read_evidence, read_labels, write_labels
from pipelines.steering import with_steering
from pipelines.store import RunConflict, RunStore

if TYPE_CHECKING:
    from graphs.evidence import Evidence
    from graphs.label import Label
    from graphs.node import NodeId
    from labelers.openai_settings import OpenAISettings
    from labelers.questions import Judge, Test
    from labelers.scoring import LabelTest

TESTS = ("detection", "fuzzing", "intruder", "output")
"""As `labelers.scoring` names them; here so that --help needs no import."""


@dataclass(frozen=True)
class ScoreRequest:
    """How labels are tested."""

    judge: Literal["rules", "openai"] = "rules"
    """Who answers: a rule label's own predicate applied to text, or a language model."""
    tests: tuple[LabelTest, ...] = TESTS
    """Which tests."""
    baseline: bool = True
    """Whether the same is asked of shuffled labels."""
    seed: int = 0
    """Of marks, intruders, shuffled labels and resamples."""
    openai: OpenAISettings | None = None
    """The endpoint, where a language model answers."""


@dataclass(frozen=True)
class Scored:
    """What testing came to."""

    labels: dict[NodeId, Label]
    """With their scores, by node."""
    usage: Mapping[str, float]
    """What a language model's answers cost, as in `Labelling.usage`; empty where the rules judged."""
    left_out: str
    """Which test could not be done, and why; empty if all were."""
    written: tuple[Path, ...]
    """Files."""


def score_run(directory: str | Path, request: ScoreRequest) -> Scored:
    """Tests the labels of a run, writes them back with their scores, and draws the run's pictures again. Raises RunConflict
    where there are none."""
    store = RunStore(directory)
    store.load()
    scored = score_store(store, request, Clock())
    return replace(scored, written=(*scored.written, *draw_again(store)))


def dry_run(directory: str | Path, request: ScoreRequest) -> str:
    """What a language model's answers would cost, in a line; nothing is asked and nothing is written."""
    from labelers.judge import JudgingForecast
    from labelers.scoring import ScoreSettings, score_labels

    store = RunStore(directory)
    store.load()
    if request.openai is None:
        return "the rules cost nothing"
    asked = cast("tuple[Test, ...]", tuple(test for test in request.tests if test != "output"))  # which asks nobody
    judge = JudgingForecast(request.openai.prices)
    settings = ScoreSettings(asked, request.baseline, resamples=1, seed=request.seed)
    score_labels(_labels(store)[0], read_evidence(store), judge, settings)
    usd = "price unknown" if judge.usd is None else f"about ${judge.usd:.2f}"
    return f"{judge.requests:,} requests, about {judge.prompt_tokens:,} tokens sent and {judge.reply_tokens:,} received, {usd}"


def _labels(store: RunStore) -> tuple[dict[NodeId, Label], dict[str, Any]]:
    labels, facts = read_labels(store)
    if not labels:
        raise RunConflict(f"{store.directory} has no labels yet: run edgewise label {store.directory} first")
    return labels, facts


def score_store(store: RunStore, request: ScoreRequest, clock: Clock) -> Scored:
    """`score_run` for a run that is open, pictures left as they are."""
    labels, facts = _labels(store)
    evidence = read_evidence(store)
    facts = {**facts, "judge": request.judge, "score_seed": request.seed}
    facts.pop("judge_usage", None)
    why_not = ""
    if "output" in request.tests:
        with clock.time("steering"):
            evidence, why_not = with_steering(store, labels, evidence, request.seed)
    with clock.time("label scores"):
        judge = _judge(request)
        scored = _scored(labels, evidence, judge, request)
    usage = dict(getattr(judge, "usage", {}))
    path = write_labels(store, scored, facts | ({"judge_usage": usage} if usage else {}))
    store.note(clock.seconds)
    return Scored(scored, usage, why_not, (path,))


def _scored(
    labels: Mapping[NodeId, Label], evidence: Mapping[NodeId, Evidence], judge: Judge, request: ScoreRequest
) -> dict[NodeId, Label]:
    from labelers.scoring import ScoreSettings, score_labels

    settings = ScoreSettings(request.tests, request.baseline, seed=request.seed)
    return score_labels(labels, evidence, judge, settings)


def _judge(request: ScoreRequest) -> Judge:
    if request.judge == "rules":
        from labelers.rule_judge import RuleJudge

        return RuleJudge()
    from labelers.judge import LLMJudge

    assert request.openai is not None
    return LLMJudge(request.openai)
