"""The flags of `edgewise label` and `edgewise score`. Imports nothing heavy: --help reads this file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.settings import ConfigError

if TYPE_CHECKING:
    from labelers.openai_settings import OpenAISettings
    from pipelines.label import LabelRequest
    from pipelines.score import ScoreRequest

TESTS = ("detection", "fuzzing", "intruder", "output")
LABEL_EPILOG = """\
Evidence of every node is collected once (evidence/*.json in the run), the labels go to labels.json and into the run's
pictures. The rules need no network. For a language model: --labeler openai --llm NAME --base-url http://127.0.0.1:8000/v1;
the key is read from EDGEWISE_API_KEY or OPENAI_API_KEY. Replies are kept, so that a stopped run costs nothing twice."""
SCORE_EPILOG = """\
Labels are tested on windows of documents that did not explain them. With --judge rules a label by rules is applied to the
text of those windows; --judge openai asks a language model. The output test steers the nodes of labels that say which tokens
they raise or lower, and looks whether these do so. Causal tests hold the label's expectation against what ablating the node
did to the task. Scores go to labels.json and into the run's pictures."""


def add_label_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise label` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory of edgewise discover or edgewise trace")
    parser.add_argument("--labeler", choices=("rules", "openai"), default="rules", help="who names (default: rules)")
    group = parser.add_argument_group("evidence")
    group.add_argument(
        "--corpus", nargs="+", default=(), metavar="FILE", help=".txt, .json or .jsonl (default: the model's own text)"
    )
    group.add_argument(
        "--documents",
        type=int,
        default=2000,
        metavar="N",
        help="documents of the embedded model's text (default: 2000)",
    )
    group.add_argument(
        "--pairs", type=int, default=64, metavar="N", help="pairs of the task for effects, at most (default: 64)"
    )
    add_endpoint(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what the language model would cost, and stop")


def add_score_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `edgewise score` takes."""
    parser.add_argument("run", metavar="RUN", help="run directory with labels")
    parser.add_argument("--judge", choices=("rules", "openai"), default="rules", help="who answers (default: rules)")
    parser.add_argument(
        "--tests", default=",".join(TESTS), metavar="T,...", help=f"which tests (default: {','.join(TESTS)})"
    )
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask the same of shuffled labels (default: yes; twice the requests)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything drawn (default: 0)")
    add_endpoint(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what the language model would cost, and stop")


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """Adds what says which language model to ask."""
    group = parser.add_argument_group("language model (any OpenAI-compatible endpoint)")
    group.add_argument("--llm", metavar="NAME", help="the model, as the endpoint knows it")
    group.add_argument("--base-url", metavar="URL", help="the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
    group.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests at once (default: 8)")
    group.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds a request (default: 120)")
    group.add_argument(
        "--reply-tokens",
        type=int,
        default=600,
        metavar="N",
        help="of a reply at most, thinking included (default: 600)",
    )
    group.add_argument(
        "--passes", choices=("three", "one"), default="three", help="output side, input side, both; or one"
    )
    group.add_argument("--price", metavar="IN,OUT", help="US dollars for a million tokens sent, and received")
    group.add_argument("--max-usd", type=float, metavar="X", help="spend no more than this (needs --price)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="use no more tokens than this")
    group.add_argument("--cache", metavar="FILE", help="replies (default: replies.sqlite in the run)")


def label_request(options: argparse.Namespace) -> LabelRequest:
    """The request that the flags make. Raises ConfigError naming the flag."""
    from pipelines.label import LabelRequest

    for name in ("documents", "pairs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")
    openai = endpoint_of(options) if options.labeler == "openai" else None
    return LabelRequest(options.labeler, tuple(options.corpus), options.documents, options.pairs, openai)


def score_request(options: argparse.Namespace) -> ScoreRequest:
    """The request that the flags make. Raises ConfigError naming the flag."""
    from pipelines.score import ScoreRequest

    tests = tuple(filter(None, map(str.strip, options.tests.split(","))))
    for test in tests:
        if test not in TESTS:
            raise ConfigError(f"--tests {test}: there is no such test (tests: {', '.join(TESTS)})")
    openai = endpoint_of(options) if options.judge == "openai" else None
    return ScoreRequest(options.judge, tests, options.baseline, options.seed, openai)  # type: ignore[arg-type]


def endpoint_of(options: argparse.Namespace) -> OpenAISettings:
    """The endpoint that the flags describe. Raises ConfigError naming the flag."""
    from labelers.openai_settings import OpenAISettings, Prices

    if not options.llm:
        raise ConfigError("--llm is missing: which model shall the endpoint run?")
    settings: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("base_url", "concurrency", "timeout", "reply_tokens", "passes", "max_usd", "max_tokens")
    }
    if options.price is not None:
        try:
            prompt, reply = (float(part) for part in options.price.split(","))
        except ValueError:
            raise ConfigError(f"--price {options.price}: write two numbers, such as 0.15,0.60") from None
        settings["prices"] = Prices(prompt, reply)
    cache = Path(options.cache) if options.cache else Path(options.run) / "replies.sqlite"
    return OpenAISettings(options.llm, cache=cache, **settings)
