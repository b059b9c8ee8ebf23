"""What `edgewise intervene` says when it is done. Formats what intervene.json holds; tokens and texts may be hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graphs.escape import clean
from pipelines.summary import table

NAMES = {"before": "before", "attention": "frozen attention", "none": "live", "all": "all frozen"}
"""Runs as they are stored -> as they are called."""


def intervention_summary(content: Mapping[str, Any]) -> str:
    """The tables of one command."""
    lines = [_head(content), *_done_lines(content["request"]), *_node_lines(content["nodes"]), ""]
    lines += _prompt_lines(content) if "next" in content else _task_lines(content)
    return "\n".join([*lines, *_generated_lines(content), ""])


def _head(content: Mapping[str, Any]) -> str:
    where = f"in {content['model']}" + (f", transcoders {content['transcoders']}" if content["transcoders"] else "")
    if "next" not in content:
        return f"{content['task']} {where}: {content['metric']} of {content['pairs']} pairs"
    return f"{_quoted(content['prompt'], 80)} {where}: {len(content['tokens'])} tokens"


def _done_lines(request: Mapping[str, Any]) -> list[str]:
    """What was done."""
    lines = [f"set {_quoted(text, 100)}" for text in request["interventions"]]
    if request["direction"] or request["difference"]:
        source = request["direction"] or "mean of {} less mean of {}".format(*request["difference"])
        vector = f", {request['vector']}" if request["vector"] else ""
        act = "projected out" if request["add"] is None else f"added {request['add']:g} times"
        streams = request["streams"]
        where = "" if streams is None else f" at {', '.join(f'r{stream}' for stream in streams)}"
        where += "" if request["position"] is None else f", position {request['position']}"
        lines.append(f"direction {clean(source)}{clean(vector)} {act}{where}")
    return lines


def _node_lines(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Features that are changed; one that never fires is named, since ablating or scaling it does nothing."""
    lines = []
    for node in nodes[:20]:
        fires = "not active" if not node["active"] else f"activation {node['activation']:.3g}"
        share = f", active at {100 * node['active']:.0f} % of its places" if 0 < node["active"] < 1 else ""
        lines.append(f"  {node['node']}  {fires}{share}")
    return [*lines, *([f"  and {len(nodes) - 20} more features"] if len(nodes) > 20 else [])]


def _prompt_lines(content: Mapping[str, Any]) -> list[str]:
    runs = ["before", *content["divergence"]]
    rows = [("next token", *(part for run in runs for part in (NAMES[run], "logit")))]
    for token in content["next"]:
        numbers = [
            part for run in runs for part in (f"{100 * token[run]['probability']:.2f} %", f"{token[run]['logit']:z.2f}")
        ]
        rows.append((_quoted(token["text"], 24), *numbers))
    moved = [part for run in runs[1:] for part in (f"{content['divergence'][run]:z.3f}", "")]
    rows.append(("KL from before (nats)", "", "", *moved))
    return table(rows, left=1)


def _task_lines(content: Mapping[str, Any]) -> list[str]:
    rows = [("", content["metric"], "interval", "change", "interval", "right", "wrong")]
    for name, run in content["runs"].items():
        change = f"{run['change']:z.3f}" if "change" in run else ""
        rows.append(
            (
                NAMES[name],
                f"{run['mean']:z.3f}",
                _interval(run, ""),
                change,
                _interval(run, "change_") if change else "",
                f"{100 * run['right']:.1f} %",
                f"{100 * run['wrong']:.1f} %",
            )
        )
    return table(rows, left=1)


def _interval(run: Mapping[str, Any], prefix: str) -> str:
    low, high = run[f"{prefix}low"], run[f"{prefix}high"]
    return "" if low is None or low != low else f"[{low:z.3f}, {high:z.3f}]"


def _generated_lines(content: Mapping[str, Any]) -> list[str]:
    found = content["generated"]
    if not found:
        return []
    if isinstance(found, Mapping):
        return [
            "",
            "generated",
            *table([(NAMES[run], _quoted(text["text"], 400)) for run, text in found.items()], left=2),
        ]
    lines = ["", "generated"]
    for pair in found:
        lines.append(f"pair {pair['pair']}: {_quoted(pair['prompt'], 400)}")
        lines += [
            "  " + line
            for line in table([(NAMES[run], _quoted(pair[run]["text"], 400)) for run in NAMES if run in pair], left=2)
        ]
    return lines


def _quoted(text: str, longest: int) -> str:
    shown = json.dumps(clean(text), ensure_ascii=False)
    return shown if len(shown) <= longest else shown[: longest - 4] + '..."'
