"""The flags of `edgewise story`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipelines.label_flags import add_endpoint, endpoint_of
from pipelines.settings import ConfigError

if TYPE_CHECKING:
    from pipelines.story import Story, StoryRequest

STORY_EPILOG = """\
Nodes of a traced prompt that are connected alike, write alike and are named alike become one group: groups.json in the run,
to edit by hand (it is kept from then on; --regroup makes it anew), and in the pictures. The circuit is told in story.json:
each sentence cites edges, and sentences whose edges do not exist or have the other sign are dropped and reported. Names come
from labels.json: run edgewise label RUN first. Without --teller openai no language model is asked."""


def add_story_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise story` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory of edgewise discover or edgewise trace")
    parser.add_argument("--teller", choices=("rules", "openai"), default="rules", help="who tells (default: rules)")
    parser.add_argument("--edges", type=int, default=60, metavar="N", help="strongest edges to tell of (default: 60)")
    group = parser.add_argument_group("groups")
    group.add_argument(
        "--group", action=argparse.BooleanOptionalAction, default=True, help="group nodes (default: yes)"
    )
    group.add_argument("--regroup", action="store_true", help="group anew; changes by hand are lost")
    group.add_argument(
        "--threshold", type=float, default=0.6, metavar="X", help="how alike nodes must be, 0 to 1 (default: 0.6)"
    )
    group.add_argument("--across-positions", action="store_true", help="nodes at different positions may be one group")
    add_endpoint(parser)


def story_request(options: argparse.Namespace) -> StoryRequest:
    """The request that the flags make. Raises ConfigError naming the flag."""
    from pipelines.story import StoryRequest

    if options.edges < 1:
        raise ConfigError(f"--edges must be at least 1, not {options.edges}")
    if not 0 < options.threshold <= 1:
        raise ConfigError(f"--threshold must be above 0 and at most 1, not {options.threshold}")
    return StoryRequest(
        teller=options.teller,
        edges=options.edges,
        group=options.group,
        regroup=options.regroup,
        threshold=options.threshold,
        across_positions=options.across_positions,
        openai=endpoint_of(options) if options.teller == "openai" else None,
    )


def story_summary(story: Story) -> str:
    """The story, what was dropped, and the groups; a line each."""
    from graphs.escape import shorten

    lines = [shorten(sentence.text, 400) for sentence in story.narrative.sentences] or ["there are no edges to tell of"]
    lines += [f"dropped: {shorten(text, 120)!r}: {shorten(why, 160)}" for text, why in story.narrative.dropped]
    if story.refused:
        lines.append(f"told by rules, for the language model has not: {shorten(story.refused, 160)}")
    if story.groups:
        lines.append("")
    for group in story.groups:
        lines.append(f"{shorten(group.label, 60)}: {', '.join(map(str, group.nodes))}")
    lines += [f"group {place} has kept its name: {shorten(why, 160)}" for place, why in story.failures.items()]
    if story.usage:
        lines.append(", ".join(f"{name} {value:,.6g}" for name, value in story.usage.items()))
    return "\n".join(lines)
