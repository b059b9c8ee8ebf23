"""The flags that stand for settings: one literal table, and how argparse reads them. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pipelines.settings import ConfigError, Settings, coerce, from_assignments, known_paths, resolve


@dataclass(frozen=True)
class Flag:
    """One flag of the command line."""

    name: str
    """As typed, such as --kv-heads."""
    path: tuple[str, ...]
    """The setting that it stands for."""
    help: str
    """One line for --help."""
    metavar: str | None = None
    """What the value is called in --help; None for flags without a value or with choices."""


FLAGS: tuple[Flag, ...] = (
    Flag("--model", ("model", "name"), "Hugging Face name or directory (default: the embedded model)", "M"),
    Flag("--revision", ("model", "revision"), "branch, tag or commit of a Hugging Face name (default: main)", "R"),
    Flag("--dtype", ("model", "dtype"), "type of the weights (scores are float32 in any case)"),
    Flag("--device", ("model", "device"), "auto, cpu, cuda, cuda:1, mps (default: auto)", "D"),
    Flag("--device-map", ("model", "device_map"), "spread the weights over devices, as transformers does", "MAP"),
    Flag("--kv-heads", ("model", "kv_heads"), "k and v slots per key/value head, or per query head as the peers count"),
    Flag("--trust-remote-code", ("model", "trust_remote_code"), "let code that comes with the model run"),
    Flag("--task", ("task", "source"), "built-in task, .jsonl/.csv/.parquet file or dataset name (default: ioi)", "T"),
    Flag("--limit", ("task", "limit"), "number of pairs", "N"),
    Flag("--columns", ("task", "columns"), "field=column,... of the file, such as clean=clean_prefix", "F=C,..."),
    Flag("--metric", ("task", "metric"), "what is measured (default: the task's own; see edgewise list metrics)", "X"),
    Flag("--bos", ("task", "bos"), "put the beginning-of-sequence token in front"),
    Flag("--chat-template", ("task", "chat_template"), "wrap prompts in the tokenizer's chat template"),
    Flag("--misaligned", ("task", "misaligned"), "pairs whose prompts differ in length: stop, or leave them out"),
    Flag("--spans", ("task", "spans"), "nodes at each named part of the prompts, or at each position"),
    Flag("--transcoders", ("transcoders", "name"), "directory or hub name: their features as nodes, not MLPs", "DIR"),
    Flag("--features", ("transcoders", "features"), "features that become nodes (default: 64)", "N"),
    Flag("--heads", ("transcoders", "heads"), "attention heads as nodes beside features (default: yes)"),
    Flag("--feature-steps", ("transcoders", "steps"), "gradients by which features are chosen (default: 5)", "N"),
    Flag("--recheck", ("transcoders", "recheck"), "score edges of features that gradients misjudge by real runs"),
    Flag("--recheck-tolerance", ("transcoders", "tolerance"), "how far the two may differ (default: 0.5)", "P"),
    Flag("--method", ("method", "name"), "how edges are scored (default: auto; see edgewise list methods)", "X"),
    Flag("--scores", ("method", "file"), "take the scores from an EAP-IG graph file (.json, .pt) instead", "FILE"),
    Flag("--ablation", ("ablation",), "what a dropped edge carries"),
    Flag("--noise-scale", ("ablating", "noise_scale"), "noise, in standard deviations of embeddings (default: 3)", "S"),
    Flag("--noise-tokens", ("ablating", "noise_tokens"), "tokens that get it (default: where prompts differ)", "T,..."),
    Flag("--learning-steps", ("ablating", "learning_steps"), "steps of optimal constants (default: 150)", "N"),
    Flag("--edges", ("selection", "edges"), "circuit of N edges", "N"),
    Flag("--nodes", ("selection", "nodes"), "circuit of all edges among the N best nodes (method atp)", "N"),
    Flag("--size", ("selection", "size"), "circuit of this share of the possible edges, such as 0.05", "P"),
    Flag("--threshold", ("selection", "threshold"), "circuit of the edges that score at least this", "S"),
    Flag("--reach", ("selection", "reach"), "else: smallest standard size with this faithfulness (default: 0.85)", "F"),
    Flag("--by", ("selection", "by"), "rank by |score| or by signed score"),
    Flag("--rule", ("selection", "rule"), "best edges anywhere, or grown from the logits"),
    Flag("--refine", ("selection", "refine"), "then swap edges by N exact runs for a more faithful circuit", "N"),
    Flag("--min-stability", ("selection", "min_stability"), "only edges selected in this share of the resamples", "P"),
    Flag("--resamples", ("selection", "resamples"), "resamples of the pairs to select from again (default: 100)", "N"),
    Flag(
        "--reruns", ("selection", "reruns"), "resamples of the pairs on which the method is run anew (default: 0)", "N"
    ),
    Flag("--seeds", ("selection", "seeds"), "seeds that a method with a seed is run with (default: 2)", "N"),
    Flag("--holdout", ("evaluation", "holdout"), "share of the pairs kept for evaluation; 0 = use all for both", "P"),
    Flag("--sizes", ("evaluation", "sizes"), "sizes of the curve: shares of the edges, 0.01,0.1,...", "P,..."),
    Flag(
        "--faithfulness-only",
        ("evaluation", "faithfulness_only"),
        "run neither complements nor random circuits along the curve",
    ),
    Flag("--bootstrap", ("evaluation", "bootstrap"), "resamples for the intervals (default: 1000)", "N"),
    Flag(
        "--random-circuits",
        ("evaluation", "random_circuits"),
        "random circuits per size of the curve (default: 3)",
        "N",
    ),
    Flag("--missed", ("evaluation", "missed"), "random subsets that bound what a node left out may do, or auto", "N"),
    Flag("--rivals", ("evaluation", "rivals"), "random circuits beside the chosen one (default: 100)", "N"),
    Flag(
        "--tests", ("evaluation", "tests"), "hypothesis tests of the circuit (default: auto, all where they are cheap)"
    ),
    Flag("--ground-truth", ("evaluation", "ground_truth"), "JSON file with the true edges: adds the AUROC", "FILE"),
    Flag("--labeler", ("labels", "labeler"), "who names the nodes (default: rules, where there is text)"),
    Flag(
        "--corpus", ("labels", "corpus"), "text files to look at nodes on (default: the embedded model's own)", "F,..."
    ),
    Flag("--formats", ("export", "formats"), "pictures and files to write, such as svg,dot", "F,..."),
    Flag("--convention", ("convention",), "mib: count, average and judge as EAP-IG and MIB do"),
    Flag("--batch-size", ("batch_size",), "pairs in one batch, or auto", "N"),
    Flag("--seed", ("seed",), "seed of everything random (default: 0)", "N"),
    Flag("--out", ("out",), "run directory (default: runs/<task>-<method>-<hash>)", "DIR"),
)
SECTION_TITLES = {
    "model": "model",
    "task": "task",
    "transcoders": "features",
    "method": "scores",
    "ablation": "scores",
    "ablating": "scores",
    "selection": "circuit",
    "evaluation": "evaluation",
    "labels": "names",
    "export": "run",
    "convention": "scores",
    "batch_size": "run",
    "seed": "run",
    "out": "run",
}
_DEST = "setting:"


def add_flags(
    parser: argparse.ArgumentParser, sections: Iterable[str], leave_out: Iterable[str] = (), other: str = "--set"
) -> None:
    """Adds the flags of these sections (first parts of paths) but for those in `leave_out`, and `--set` (named `other`)."""
    wanted, unwanted, groups = set(sections), set(leave_out), {}
    for flag in FLAGS:
        if flag.path[0] not in wanted or flag.name in unwanted:
            continue
        title = SECTION_TITLES[flag.path[0]]
        group = groups.setdefault(title, None) or parser.add_argument_group(title)
        groups[title] = group
        _add(group, flag)
    parser.add_argument(
        other,
        dest="set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other setting, such as method.steps=5",
    )


def _add(group: Any, flag: Flag) -> None:
    kind = known_paths()[flag.path]
    common = {"dest": _DEST + ".".join(flag.path), "default": None, "help": flag.help}
    if kind is bool:
        group.add_argument(flag.name, action=argparse.BooleanOptionalAction, **common)
    elif get_origin(kind) is Literal:
        group.add_argument(flag.name, choices=get_args(kind), **common)
    else:
        group.add_argument(flag.name, metavar=flag.metavar, **common)


def flag_settings(arguments: argparse.Namespace) -> Settings:
    """The layer of settings that the given flags and `--set` make. Raises ConfigError for a value that does not fit."""
    settings: Settings = {}
    table: dict[str, Any] = {}
    for flag in FLAGS:
        given = getattr(arguments, _DEST + ".".join(flag.path), None)
        if given is None:
            continue
        value = _from_text(flag, given) if isinstance(given, str) else given
        place = table
        for key in flag.path[:-1]:
            place = place.setdefault(key, {})
        place[flag.path[-1]] = value
    settings.update(resolve(table, "command line"))
    for path, value in from_assignments(arguments.set).items():
        if path in settings and settings[path] != value and not isinstance(value, dict):
            raise ConfigError(f"command line: {'.'.join(path)} is given by a flag and by --set; leave one out")
        settings[path] = {**settings.get(path, {}), **value} if isinstance(value, dict) else value
    return settings


def _from_text(flag: Flag, text: str) -> Any:
    """A flag's text as its setting's type."""
    kind = known_paths()[flag.path]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return [_number(part) if item is float else part for part in filter(None, map(str.strip, text.split(",")))]
    if get_origin(kind) is dict:
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(equals for _, equals, _ in pairs):
            raise ConfigError(f"{flag.name} {text}: write it as field=column,field=column")
        return {key.strip(): value.strip() for key, _, value in pairs}
    for value in (_number(text), text):
        try:
            return coerce(value, kind)
        except ValueError:
            continue
    return text  # `resolve` says what was wanted


def _number(text: str) -> int | float | str:
    """The text as a number where it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def names_in(text: str, flag: str) -> tuple[str, ...]:
    """The names of a comma-separated list."""
    names = tuple(filter(None, map(str.strip, text.split(","))))
    if not names:
        raise ConfigError(f"{flag} needs at least one name")
    return names
