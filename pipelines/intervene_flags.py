"""The flags of `edgewise intervene`, and the request that they make. Imports nothing heavy."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from pipelines.flags import add_flags
from pipelines.settings import ConfigError

FREEZES = ("none", "attention", "all")
"""What may be frozen, as users name it; by default a run with `attention` and one with `none` are made."""
EPILOG = """\
NODES are one or several, with commas between: f2.17 a feature, f2.* all features of a layer, e2 its error node,
a0.h3 a head, a0.h* all heads, m2 an MLP; @4 or @-1 behind a name is a position of the prompt (else: all tokens).
  --set "f2.17@4=0"            ablate          --set "f2.17@4*=2"          scale
  --set "f2.17,f2.3@-1=1.5"    clamp           --set "f2.17@4+=0.5"        add
  --set "a0.h3=mean"           mean ablation   --set "e2=0"                without the transcoders' error
  --set "f0.*@4=swap"          from --donor, or from a task's corrupt prompts, at the same position
  --set "f0.*@4=swap@6:PROMPT" from position 6 of another prompt
examples:
  edgewise intervene "The city of Lyon is in the country whose capital is" \\
      --set "f0.*@4=swap:The city of Kyoto is in the country whose capital is"
  edgewise intervene --task ioi --set "a1.h0,a1.h2=mean"
  edgewise intervene "She was" --difference glad.txt sad.txt --add 2 --streams 2 --generate 20"""


@dataclass(frozen=True)
class Request:
    """What was asked for, besides the settings of model and task."""

    prompt: str | None = None
    """The prompt, or the name of a .json file of token ids; None: the task."""
    transcoders: str | None = None
    """Directory or hub name; None: the embedded model's own."""
    interventions: tuple[str, ...] = ()
    """Texts of `--set`."""
    donor: str | None = None
    """Prompt that swaps take values from, where they name none (of a task: instead of each pair's corrupt prompt)."""
    mean_over: str | None = None
    """File of prompts that means are taken over; None: the task's corrupt prompts."""
    direction: str | None = None
    """Safetensors file with directions."""
    difference: tuple[str, str] | None = None
    """Files of positive and negative prompts whose difference of means is the direction."""
    vector: str | None = None
    """Which tensor of the direction's file, or which residual stream's (r2) of the difference; None: each at its own stream."""
    add: float | None = None
    """How often the direction is added; None: it is projected out."""
    streams: tuple[int, ...] | None = None
    """Residual streams at which this is done; None: see `discovery.direction.direction_edits`."""
    position: int | None = None
    """Where in the prompt the direction is changed; None: at all tokens."""
    freeze: str | None = None
    """One of FREEZES; None: with frozen attention, and live."""
    generate: int = 0
    """Tokens to generate."""
    top: int = 10
    """Next tokens to show for each run."""


def add_intervene_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all flags of the command."""
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help='the prompt, or a .json file {"tokens": [ids]}; else --task'
    )
    add_flags(
        parser,
        ("model", "task", "batch_size", "seed", "out"),
        leave_out=("--kv-heads", "--transcoders", "--spans"),
        other="--setting",
    )
    group = parser.add_argument_group("interventions")
    group.add_argument(
        "--set",
        dest="interventions",
        action="append",
        default=[],
        metavar="NODES=VALUE",
        help="what to change (see below)",
    )
    group.add_argument("--transcoders", metavar="T", help="directory or hub name (default: the embedded model's own)")
    group.add_argument(
        "--donor", metavar="PROMPT", help="where =swap takes values from (of a task: its corrupt prompts)"
    )
    group.add_argument(
        "--mean-over", metavar="FILE", help="prompts that =mean is taken over (of a task: its corrupt prompts)"
    )
    group.add_argument(
        "--freeze",
        choices=FREEZES,
        help="what is held as without interventions (default: one run with attention, one with none)",
    )
    _add_direction_flags(parser.add_argument_group("directions"))
    group = parser.add_argument_group("report")
    group.add_argument("--generate", type=int, default=0, metavar="N", help="generate N tokens, before and after")
    group.add_argument("--top", type=int, default=10, metavar="K", help="likeliest next tokens to show (default: 10)")


def _add_direction_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--direction", metavar="FILE", help="safetensors file with a vector, or with one per stream (r0, r1, ...)"
    )
    group.add_argument(
        "--difference",
        nargs=2,
        metavar=("A", "B"),
        help="make the direction: mean over the prompts of file A less that of B",
    )
    group.add_argument(
        "--vector", metavar="NAME", help="the tensor of the file to use (r2: the difference at that stream)"
    )
    what = group.add_mutually_exclusive_group()
    what.add_argument("--project-out", action="store_true", help="remove its component (the default)")
    what.add_argument("--add", type=float, metavar="C", help="add C times the vector")
    group.add_argument("--streams", metavar="L,...", help="only at the residual streams that enter these layers")
    group.add_argument("--at", type=int, metavar="POS", help="only at this position of the prompt")


def request_of(options: argparse.Namespace) -> Request:
    """What the flags ask for. Raises ConfigError where they do not fit together."""
    has_task = getattr(options, "setting:task.source", None) is not None
    if (options.prompt is None) != has_task:
        raise ConfigError("give a PROMPT or --task, one of the two")
    if options.direction is None and options.difference is None:
        for flag, value in (
            ("--project-out", options.project_out or None),
            ("--add", options.add),
            ("--vector", options.vector),
            ("--streams", options.streams),
            ("--at", options.at),
        ):
            if value is not None:
                raise ConfigError(f"{flag} needs a direction: --direction FILE or --difference A B")
    return Request(
        prompt=options.prompt,
        transcoders=options.transcoders,
        interventions=tuple(options.interventions),
        donor=options.donor,
        mean_over=options.mean_over,
        direction=options.direction,
        difference=None if options.difference is None else tuple(options.difference),
        vector=options.vector,
        add=options.add,
        streams=None if options.streams is None else _streams(options.streams),
        position=options.at,
        freeze=options.freeze,
        generate=options.generate,
        top=options.top,
    )


def _streams(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.strip().removeprefix("r")) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--streams {text}: write numbers with commas between, such as 2,3") from None
