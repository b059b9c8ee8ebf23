"""What may be typed: the parser of every command. Nothing heavy is imported, so that --help is quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pipelines.check_flags import add_check_flags
from pipelines.flags import add_flags
from pipelines.foreign_flags import EXPORT_EPILOG, IMPORT_EPILOG, add_export_flags, add_import_flags
from pipelines.intervene_flags import EPILOG as _INTERVENE_EPILOG
from pipelines.intervene_flags import add_intervene_flags
from pipelines.label_flags import LABEL_EPILOG, SCORE_EPILOG, add_label_flags, add_score_flags
from pipelines.progress_flags import EPILOG as _PROGRESS_EPILOG
from pipelines.progress_flags import add_progress_flags
from pipelines.serve_flags import EPILOG as _SERVE_EPILOG
from pipelines.serve_flags import add_serve_flags
from pipelines.story_flags import STORY_EPILOG, add_story_flags
from pipelines.trace_flags import EPILOG as _TRACE_EPILOG
from pipelines.trace_flags import add_trace_flags
from pipelines.train_flags import EPILOG as _TRAIN_EPILOG
from pipelines.train_flags import add_train_flags
from pipelines.tune_flags import EPILOG as _TUNE_EPILOG
from pipelines.tune_flags import add_tune_flags

LISTS = ("models", "tasks", "methods", "exporters", "metrics")
MAPS = ("residual", "attention", "mlp", "heads")

_EPILOG = """examples:
  edgewise discover                                        the embedded model on IOI, from scores to pictures
  edgewise discover --model gpt2 --task greater-than --method eap-ig --edges 300 --out runs/gt
  edgewise discover experiment.toml --set method.steps=20  a file of settings, one of them changed
  edgewise evaluate runs/gt --ablation mean                judge the stored circuit under another ablation
  edgewise export runs/gt --format svg,graphml             draw the stored circuit again
  edgewise validate pairs.jsonl --model gpt2               do the prompts align, are the answers single tokens?
  edgewise patch --model gpt2 --task ioi --out runs/maps   activation patching as heat maps
  edgewise intervene --task ioi --set "a1.h0=mean"         take a head away, with frozen and with live attention
  edgewise label runs/gt --corpus text.jsonl              name the nodes of a stored circuit
  edgewise trace "The city of Lyon is in the country whose capital is"    features behind the next token
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; parsed arguments hold the chosen one under `command`."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="edgewise",
        description="From a language model and a task to the circuit that does it: scored, evaluated, drawn.",
        epilog=_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"edgewise {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, add in _COMMANDS.items():
        add(commands, name)
    return parser


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("edgewise")
    except PackageNotFoundError:
        return "not installed"


def _command(commands: argparse._SubParsersAction, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and log messages")
    parser.set_defaults(command=name)
    return parser


def _add_discover(commands: argparse._SubParsersAction, name: str) -> None:
    text = "score every edge of a model on a task, cut out the circuit, evaluate and draw it"
    parser = _command(commands, name, text, _DISCOVER_EPILOG)
    parser.add_argument("config", nargs="?", metavar="CONFIG.toml", help="settings; flags win over them")
    add_flags(
        parser,
        (
            "model",
            "task",
            "transcoders",
            "method",
            "ablation",
            "ablating",
            "selection",
            "evaluation",
            "labels",
            "export",
            "convention",
            "batch_size",
            "seed",
            "out",
        ),
    )
    parser.add_argument("--overwrite", action="store_true", help="start anew in a directory that holds another run")


_DISCOVER_EPILOG = """\
Every flag can stand in CONFIG.toml, under its name or in its section, and every key of the file can be
given by --set. Such a file:
  task = "ioi"
  edges = 200
  [method]
  name = "eap-ig"
  steps = 20
The same command resumes a run that was stopped, and reuses what is finished."""


def _add_evaluate(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "evaluate a stored run again, with other sizes, ablation or metric")
    parser.add_argument("run", metavar="RUN", help="run directory of edgewise discover")
    add_flags(
        parser,
        ("model", "task", "ablation", "ablating", "evaluation", "convention", "batch_size"),
        leave_out=_FIXED_BY_THE_RUN,
    )


_FIXED_BY_THE_RUN = (
    "--model",
    "--revision",
    "--kv-heads",
    "--task",
    "--limit",
    "--columns",
    "--bos",
    "--chat-template",
    "--misaligned",
    "--spans",
    "--holdout",
)


def _add_tune(commands: argparse._SubParsersAction, name: str) -> None:
    text = "try methods, steps, ablations and selections, and say which no other one beats"
    add_tune_flags(_command(commands, name, text, _TUNE_EPILOG))


def _add_progress(commands: argparse._SubParsersAction, name: str) -> None:
    text = "run one task over training checkpoints: when edges and circuits appear"
    add_progress_flags(_command(commands, name, text, _PROGRESS_EPILOG))


def _add_scrub(commands: argparse._SubParsersAction, name: str) -> None:
    text = "test a stored circuit by causal scrubbing: resample all that should not matter"
    parser = _command(commands, name, text)
    parser.add_argument("run", metavar="RUN", help="run directory of edgewise discover")
    parser.add_argument(
        "--groups", default="answer", metavar="BY",
        help="kept edges carry values of prompts alike in this: answer, or a column of the task file (default: answer)",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=10, metavar="N", help="draws for every pair (default: 10)")
    add_flags(parser, ("task", "batch_size"), leave_out=_FIXED_BY_THE_RUN)


def _add_export(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "write a stored circuit in other formats")
    parser.add_argument("run", metavar="RUN", help="run directory of edgewise discover")
    parser.add_argument(
        "--format", "--formats", dest="formats", required=True, metavar="F,...", help="svg,dot,json,graphml,png,pdf"
    )


def _add_mib(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "write stored runs as a submission to the MIB benchmark's circuit track")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories of edgewise discover --kv-heads query")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets a folder <task>_<model> for each run")
    parser.add_argument(
        "--form", choices=("scores", "circuits"), default="scores", help="one file of scores, or nine circuits"
    )
    parser.add_argument("--file", choices=("json", "pt"), default="json", help="EAP-IG's graph as JSON or .pt")
    parser.add_argument("--as", dest="folder", metavar="NAME", help="the folder's name, such as ioi_gpt2")
    parser.add_argument("--by", choices=("absolute", "signed"), default="absolute", help="what circuits are cut by")


def _add_validate(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "say which prompts do not fit, and how well the model does the task")
    parser.add_argument("task", metavar="TASK", help="built-in task, file or dataset name")
    sections = ("model", "task", "ablation", "ablating", "batch_size", "seed")
    add_flags(parser, sections, leave_out=("--task", "--noise-scale", "--learning-steps"))
    parser.add_argument(
        "--rows", type=int, default=20, metavar="N", help="name at most N rows of each kind (default: 20)"
    )


def _add_patch(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "patch nodes instead of edges, and draw heat maps")
    sections = ("model", "task", "ablation", "ablating", "batch_size", "seed", "out")
    add_flags(parser, sections, leave_out=("--spans",))
    parser.add_argument(
        "--what", default=",".join(MAPS), metavar="W,...", help=f"which maps (default: {','.join(MAPS)})"
    )
    parser.add_argument(
        "--method", choices=("activation", "attribution"), default="activation", help="run, or gradient"
    )
    parser.add_argument(
        "--direction", choices=("denoising", "noising"), default="denoising", help="clean into ablated, or back"
    )
    parser.add_argument(
        "--path", action="append", default=[], metavar="P",
        help="patch a path instead, such as 'a0.h1->a2.h0<q>->logits' (its last slot may be any; may be repeated)",
    )  # fmt: skip


def _add_intervene(commands: argparse._SubParsersAction, name: str) -> None:
    text = "change features, heads, MLPs or directions, and see what the model says then"
    add_intervene_flags(_command(commands, name, text, _INTERVENE_EPILOG))


def _add_check_transcoders(commands: argparse._SubParsersAction, name: str) -> None:
    text = "say how well transcoders or autoencoders fit a model, and what is wrong where they do not"
    parser = _command(commands, name, text)
    add_check_flags(parser)


def _add_train_transcoders(commands: argparse._SubParsersAction, name: str) -> None:
    text = "train transcoders of all of a model's layers on text"
    add_train_flags(_command(commands, name, text, _TRAIN_EPILOG))


def _add_trace(commands: argparse._SubParsersAction, name: str) -> None:
    text = "draw the attribution graph of one prompt: which features lead to the next token"
    add_trace_flags(_command(commands, name, text, _TRACE_EPILOG))


def _add_connections(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(
        commands, name, "say what the weights alone connect a feature to: other features, heads and tokens"
    )
    parser.add_argument("feature", metavar="FEATURE", help="such as f2.31")
    unused = ("--kv-heads", "--features", "--heads", "--feature-steps", "--recheck", "--recheck-tolerance")
    add_flags(parser, ("model", "transcoders"), leave_out=unused)
    parser.add_argument("--top", type=int, default=10, metavar="N", help="so many upwards and downwards (default: 10)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the result as JSON too; - prints it instead of the tables"
    )


def _add_label(commands: argparse._SubParsersAction, name: str) -> None:
    add_label_flags(_command(commands, name, "name every node of a stored run, with evidence", LABEL_EPILOG))


def _add_score(commands: argparse._SubParsersAction, name: str) -> None:
    add_score_flags(_command(commands, name, "test the names of a stored run on held-out text", SCORE_EPILOG))


def _add_story(commands: argparse._SubParsersAction, name: str) -> None:
    add_story_flags(
        _command(commands, name, "group a circuit's nodes and tell it in sentences that cite edges", STORY_EPILOG)
    )


def _add_import_labels(commands: argparse._SubParsersAction, name: str) -> None:
    text = "take names of features over from Neuronpedia or Delphi"
    add_import_flags(_command(commands, name, text, IMPORT_EPILOG))


def _add_export_labels(commands: argparse._SubParsersAction, name: str) -> None:
    text = "write names of features as Neuronpedia's or Delphi's files"
    add_export_flags(_command(commands, name, text, EXPORT_EPILOG))


def _add_serve(commands: argparse._SubParsersAction, name: str) -> None:
    text = "answer chats with a local model, as an OpenAI-compatible server"
    add_serve_flags(_command(commands, name, text, _SERVE_EPILOG))


def _add_list(commands: argparse._SubParsersAction, name: str) -> None:
    parser = _command(commands, name, "list what can be named in settings")
    parser.add_argument("what", choices=LISTS)


_COMMANDS: dict[str, Callable[[argparse._SubParsersAction, str], None]] = {
    "discover": _add_discover,
    "evaluate": _add_evaluate,
    "tune": _add_tune,
    "progress": _add_progress,
    "scrub": _add_scrub,
    "export": _add_export,
    "mib": _add_mib,
    "validate": _add_validate,
    "patch": _add_patch,
    "intervene": _add_intervene,
    "check-transcoders": _add_check_transcoders,
    "train-transcoders": _add_train_transcoders,
    "trace": _add_trace,
    "connections": _add_connections,
    "label": _add_label,
    "score": _add_score,
    "story": _add_story,
    "import-labels": _add_import_labels,
    "export-labels": _add_export_labels,
    "serve": _add_serve,
    "list": _add_list,
}
