"""What a command says when it is done, as plain text. Formats numbers that are on disk; prints nothing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.view import percent
from pipelines.default_method import method_name
from pipelines.method_summary import method_lines

if TYPE_CHECKING:
    pass

STEPS = (
    *("task", "hashes", "model", "batches", "transcoders", "features", "check", "ablation", "scores", "gates"),
    *("circuit", "evaluation", "evidence", "labels", "exports"),
)


def discovery_summary(
    run: Mapping[str, Any], evaluation: Mapping[str, Any], reused: Sequence[str], written: Sequence[Path]
) -> str:
    """The short table of `edgewise discover`."""
    task, model = run["task"], run["model"]
    config, counts = run["config"], run["circuit"]
    lines = [
        f"{task['name']} in {model['name']}: {method_name(run)}, {task['metric']}, {config['ablation']} ablation",
        f"{task['train_pairs']} pairs scored, {task['held_out_pairs']} held out for evaluation"
        if task["held_out_pairs"] and config["evaluation"]["holdout"]
        else f"{task['train_pairs']} pairs, both scored and evaluated on",
        *([f"nodes at {len(task['spans'])} spans: {', '.join(map(str, task['spans']))}"] if "spans" in task else []),
        *_feature_lines(run),
        "",
        _circuit_line(model["edges"], counts),
        *method_lines(run),
        *_refined_lines(run),
        *_judgement_lines(evaluation),
        *_rerun_lines(run, evaluation),
        *_name_lines(run),
        *_node_lines(run),
        "",
        *curve_lines(evaluation),
        "",
        _seconds(run["seconds"], reused),
        "",
        *(f"wrote {path}" for path in written),
    ]
    return "\n".join(lines)


def evaluation_summary(evaluation: Mapping[str, Any]) -> str:
    """The table of `edgewise evaluate`."""
    head = f"{evaluation['metric']}, {evaluation['ablation']} ablation, {evaluation['pairs']} pairs"
    edges = f"circuit       {evaluation['circuit']['edges']:,} edges"
    return "\n".join([head, "", edges, *_judgement_lines(evaluation), "", *curve_lines(evaluation), ""])


def _feature_lines(run: Mapping[str, Any]) -> list[str]:
    """Which features are nodes, and what gradients got wrong, where the graph has features."""
    features, gates = run.get("features"), run.get("gates")
    if features is None:
        return []
    lines = [
        f"{features['chosen']} of {features['live']:,} features with an effect are nodes "
        f"({percent(features['share'], 1)} of the features' summed effects)"
    ]
    if gates is not None:
        nodes = len({one["node"] for one in gates["flagged"]})
        lines.append(
            f"{nodes} of them or of the error nodes misjudged by gradients: {gates['rescored_edges']:,} edges scored by runs"
        )
    return lines


def _name_lines(run: Mapping[str, Any]) -> list[str]:
    """How many nodes have a name, and how many names passed their causal test; how to get names where there are none."""
    names = run.get("labels")
    if names is None:
        return [
            "names         none: edgewise label RUN names the nodes, best with --corpus FILE (else by the task's prompts)"
        ]
    tests = f"; {names['passed']} of {names['tested']} causal tests passed" if names.get("tested") else ""
    return [f"names         {names['named']} of {names['nodes']} nodes, the others are unclear{tests}"]


def _node_lines(run: Mapping[str, Any]) -> list[str]:
    """The strongest nodes and parts of nodes, where the run's method scored nodes."""
    nodes = run.get("nodes")
    if nodes is None:
        return []

    def named(found: Sequence[Mapping[str, Any]]) -> str:
        return "  ".join(f"{one['name']} {number(one['score'])}" for one in found)

    what = f"{nodes['vectors']:,} q/k/v vectors" + (f" and {nodes['neurons']:,} neurons" if nodes["neurons"] else "")
    lines = [f"nodes         {named(nodes['top'])}  (of {nodes['count']:,})"]
    return [*lines, f"parts         {named(nodes['parts'])}  (of {what})"] if nodes["parts"] else lines


def _refined_lines(run: Mapping[str, Any]) -> list[str]:
    """What swapping edges by real runs has brought, where it was asked for."""
    found = run.get("refined")
    if found is None:
        return []
    change = f"faithfulness {number(found['before'])} -> {number(found['after'])} on the scoring split"
    return [f"refined       {change}, {found['new_edges']} edges new, {found['runs']:,} circuits run"]


def _circuit_line(possible: int, counts: Mapping[str, int]) -> str:
    edges = f"{counts['edges']:,} of {possible:,} edges ({percent(counts['edges'], possible)})"
    if counts["edges"] < counts["selected"]:
        edges += f"; {counts['selected'] - counts['edges']:,} dead ends dropped"
    if not counts["edges"]:
        edges += ": no path from the input to the logits; ask for more edges"
    return f"circuit       {edges}"


def _judgement_lines(evaluation: Mapping[str, Any]) -> list[str]:
    own, rivals = evaluation["circuit"], evaluation.get("rivals")
    train = "" if own.get("train") is None else f"  ({number(own['train'])} on pairs that were scored)"
    lines = [f"faithfulness  {number(own['faithfulness'])}{_interval(own)}{train}"]
    if own.get("error_share") is not None:
        lines.append(
            f"error nodes   {percent(own['error_share'], 1)} of the circuit's |score|; "
            f"faithfulness without them {number(evaluation['without_errors']['faithfulness'])}"
        )
    if own.get("completeness") is not None:
        lines.append(f"completeness  {number(own['completeness'])}  (faithfulness of all the other edges)")
    if rivals:
        lines.append(
            f"random        {number(sum(rivals['random']) / len(rivals['random']))}  (mean of {len(rivals['random'])} "
            f"random circuits of whole paths, no smaller; 95th percentile {number(rivals['percentile_95'])})"
        )
    lines += _stability_lines(evaluation)
    missed = evaluation.get("missed")
    if missed and missed["bound"] is not None:
        lines.append(
            f"missed        {number(missed['bound'], 3)}  (none of the {missed['nodes']} nodes left out does more, at "
            f"{missed['confidence']:.0%}; {percent(missed['share'], 1)} of the whole effect; {missed['samples']} subsets)"
        )
    lines.append(
        f"CMD           {number(evaluation['cmd'], 3)}  (CPR {number(evaluation['cpr'])}, "
        f"CMD over log size {number(evaluation['cmd_log'])})"
    )
    if evaluation.get("auroc") is not None:
        lines.append(f"AUROC         {number(evaluation['auroc'], 3)}  (scores against the ground truth)")
    return [*lines, *_test_lines(evaluation.get("tests", [])), *_warning_lines(evaluation.get("warnings", []))]


def _stability_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """How much the selected edges agree between resamples of the pairs, and between seeds."""
    stability, lines = evaluation.get("stability") or {}, []
    for kind, words in (("resamples", "resamples of the pairs"), ("seeds", "seeds")):
        found = stability.get(kind)
        if found:
            sure = f"; {stability['sure']:,} edges in nearly all" if kind == "resamples" else ""
            overlap = f"{number(found['mean'])}{_interval(found)}"
            lines.append(f"stability     {overlap}  (overlap of edges between {found['draws']} {words}{sure})")
    return lines


def _rerun_lines(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[str]:
    """How to learn what the pairs' own scores could not tell: methods that learn decide on all pairs together."""
    from discovery.methods import METHODS

    line = METHODS.get(method_name(run))
    if line is None or not line.learned or "resamples" in (evaluation.get("stability") or {}):
        return []
    wanted, took = run["config"]["selection"], run["seconds"].get("scores")
    cost = "" if took is None else f", in about {10 * took / wanted['seeds']:.0f} s"
    return [f"stability     over the pairs not known: --reruns 10 runs {line.name} on 10 resamples of them{cost}"]


def _test_lines(tests: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each hypothesis test, p-values as corrected for their number."""
    title, lines = "tests         ", []
    for test in tests:
        found = f"{test['name']} {'passed' if test['passed'] else 'FAILED'} (p {test['adjusted']:.2g})"
        if test.get("superfluous"):
            found += f", {len(test['superfluous'])} of {test['count']} edges matter less than random ones"
        lines.append(f"{title}{found}")
        title = " " * len(title)
    return lines


def _warning_lines(warnings: Sequence[str]) -> list[str]:
    return [f"WARNING       {warning}" for warning in warnings]


def curve_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """The curve as a table, one circuit size a line."""
    rows = [("size", "edges", "faithfulness", "interval", "completeness", "random", "train")]
    for point in evaluation["curve"]:
        rows.append(
            (
                f"{100 * point['size']:g} %",
                f"{point['edges']:,}",
                number(point["faithfulness"]),
                _interval(point).strip(),
                number(point.get("completeness")),
                number(point.get("random")),
                number(point.get("train")),
            )
        )
    return table(rows)


def table(rows: Sequence[Sequence[str]], left: int = 0) -> list[str]:
    """Aligned columns, two spaces apart; the first `left` columns to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _seconds(seconds: Mapping[str, float], reused: Sequence[str]) -> str:
    """One line; steps under 0.05 s are left out, but for the ones that matter."""
    shown = []
    for step in STEPS:
        if seconds.get(step, 0) >= 0.05 or (step in ("scores", "evaluation") and step in seconds):
            shown.append(f"{step} {seconds[step]:.1f}" + (" (stored)" if step in reused and step != "exports" else ""))
    return "seconds       " + "  ".join(shown)


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:z.{digits}f}"  # z: no minus before a rounded zero


def _interval(point: Mapping[str, Any]) -> str:
    if point.get("low") is None or point.get("high") is None:
        return ""
    return f"  [{point['low']:z.2f}, {point['high']:z.2f}]"
