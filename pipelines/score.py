"""`edgewise score`: are the names of a run any good? Held-out text, a judge, and what interventions measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
    from labelers.questions import Judge
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


def score_store(store: RunStore, request: ScoreRequest, clock: Clock) -> Scored:
    """`score_run` for a run that is open, pictures left as they are."""
    labels, facts = read_labels(store)
    if not labels:
        raise RunConflict(f"{store.directory} has no labels yet: run edgewise label {store.directory} first")
    evidence = read_evidence(store)
    facts = {**facts, "judge": request.judge, "score_seed": request.seed}
    why_not = ""
    if "output" in request.tests:
        with clock.time("steering"):
            evidence, why_not = with_steering(store, labels, evidence, request.seed)
    with clock.time("label scores"):
        scored = _scored(labels, evidence, request)
    path = write_labels(store, scored, facts)
    store.note(clock.seconds)
    return Scored(scored, why_not, (path,))


def _scored(
    labels: Mapping[NodeId, Label], evidence: Mapping[NodeId, Evidence], request: ScoreRequest
) -> dict[NodeId, Label]:
    from labelers.scoring import ScoreSettings, score_labels

    settings = ScoreSettings(request.tests, request.baseline, seed=request.seed)
    return score_labels(labels, evidence, _judge(request), settings)


def _judge(request: ScoreRequest) -> Judge:
    if request.judge == "rules":
        from labelers.rule_judge import RuleJudge

        return RuleJudge()
    from labelers.judge import LLMJudge

    assert request.openai is not None
    return LLMJudge(request.openai)
