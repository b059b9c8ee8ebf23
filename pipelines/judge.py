"""What evaluation.json says: the curve, the circuit itself, its random rivals, the tests, and reasons to doubt it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig
from pipelines.cost import affordable, operations
from pipelines.inputs import Inputs
from pipelines.scoring import methods_of, rule_of

if TYPE_CHECKING:
    from discovery.circuit_tests import Depth
    from discovery.evaluate import Question
    from graphs.circuit import Circuit
    from graphs.scores import EdgeScores

_MISSED = 200
"""With missed = auto, random subsets for methods that come with this diagnostic."""


def judge(
    config: RunConfig,
    inputs: Inputs,
    scores: EdgeScores,
    circuit: Circuit,
    stability: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json, from one pass over the held-out pairs and one over as many of the scoring split.

    stability: what run.json says of the selection's stability.
    """
    from discovery.doubts import doubts
    from discovery.evaluate import ask, with_train

    wanted = config.evaluation
    questions = _questions(config, inputs, scores, circuit)
    answers = dict(zip(questions, ask(inputs.model, inputs.held_out, list(questions.values())), strict=True))
    curve, own = answers["curve"], answers["circuit"]
    if inputs.held_out is not inputs.train and wanted.holdout:
        few = inputs.some_of_train(inputs.held_out.pair_count)
        scored = [*questions["curve"].circuits[: len(curve.points)], circuit]
        *points, own = with_train(inputs.model, few, scored, [*curve.points, own])
        curve = dataclasses.replace(curve, points=tuple(points))
    result = {**curve.to_json(), **_mib_areas(answers), "circuit": own.to_json(), "metric": inputs.metric.name}
    if "without_errors" in answers:
        alone = answers["without_errors"]
        result["without_errors"] = {"edges": alone.edges, "faithfulness": alone.faithfulness}
    result["ablation"] = config.ablation
    if "rivals" in answers:
        result["rivals"] = answers["rivals"].to_json()
    if "missed" in answers:
        result["missed"] = answers["missed"].to_json()
    if "tests" in answers:
        result["tests"] = [verdict.to_json() for verdict in answers["tests"]]
    if stability is not None:
        result["stability"] = dict(stability)
    return {**result, "warnings": list(doubts(result))}


def _mib_areas(answers: Mapping[str, Any]) -> dict[str, float]:
    """Under MIB's convention: CPR of circuits cut by signed score, CMD of those cut by absolute score."""
    if "other curve" not in answers:
        return {}
    curves = {answers[name].by: answers[name] for name in ("curve", "other curve")}
    return {"cpr": curves["signed"].cpr, "cmd": curves["absolute"].cmd}


def _questions(config: RunConfig, inputs: Inputs, scores: EdgeScores, circuit: Circuit) -> dict[str, Question[Any]]:
    from discovery.circuit_tests import Sampling, hypothesis_question
    from discovery.evaluate import circuit_question, curve_question, rivals_question
    from discovery.missed_effects import missed_question
    from graphs.error_share import error_share, without_errors
    from graphs.ground_truth import read_ground_truth
    from graphs.prune import drop_dead_ends

    wanted, seed = config.evaluation, config.seed
    questions: dict[str, Question[Any]] = {
        "curve": curve_question(
            inputs.model.topology,
            scores,
            sizes=wanted.sizes,
            select=rule_of(config),
            by=config.selection.by,
            random_baseline=wanted.random_circuits,
            bootstrap=wanted.bootstrap,
            seed=seed,
            faithfulness_only=wanted.faithfulness_only,
            truth=None if wanted.ground_truth is None else read_ground_truth(Path(wanted.ground_truth)),
        ),
        "circuit": circuit_question(
            circuit, completeness=not wanted.faithfulness_only, bootstrap=wanted.bootstrap, seed=seed
        ),
    }
    if config.convention == "mib":
        questions["other curve"] = curve_question(
            inputs.model.topology,
            scores,
            sizes=wanted.sizes,
            select=rule_of(config),
            by="signed" if config.selection.by == "absolute" else "absolute",
            bootstrap=0,
            faithfulness_only=True,
        )
    if error_share(circuit) is not None:
        features_alone = drop_dead_ends(without_errors(circuit))
        questions["without_errors"] = circuit_question(features_alone, completeness=False, bootstrap=0)
    if wanted.rivals:
        questions["rivals"] = rivals_question(circuit, wanted.rivals, seed)
    missed = _missed_samples(config)
    if missed and circuit.edge_count:
        questions["missed"] = missed_question(circuit, missed, seed)
    if wanted.tests != "none" and circuit.edge_count:
        sampling = Sampling(rivals=wanted.rivals)
        depth: Depth = "free" if wanted.tests == "free" else "all"
        asked = hypothesis_question(circuit, depth, seed, sampling)
        if wanted.tests == "auto" and not _affordable(inputs, len(asked.circuits)):
            asked = hypothesis_question(circuit, "free", seed, sampling)
        questions["tests"] = asked
    return questions


def _missed_samples(config: RunConfig) -> int:
    """Subsets by which the effects of nodes outside the circuit are bounded."""
    wanted = config.evaluation.missed
    if wanted != "auto":
        return wanted
    return _MISSED if config.method.file is None and any(line.bounded for line, _ in methods_of(config)) else 0


def _affordable(inputs: Inputs, runs: int) -> bool:
    """Whether so many runs of the model on the held-out pairs are few enough to be made without being asked for."""
    return operations(inputs, inputs.held_out, runs) <= affordable(inputs)
