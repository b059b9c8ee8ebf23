"""The command line. Nothing heavy is imported before a command runs, so that --help is quick."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipelines import feature_commands
from pipelines.flags import flag_settings, names_in
from pipelines.parser import make_parser
from pipelines.processes import check_command, is_first
from pipelines.settings import ConfigError, Settings, build, from_file

USER_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 done, 2 a mistake in what was asked for, 130 interrupted."""
    if not is_first():
        os.environ["TQDM_DISABLE"] = "1"
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        _complain("interrupted; finished steps are kept, and the same command goes on from there")
        return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.debug else logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("edgewise").setLevel(logging.INFO)  # what the command itself has to say
    try:
        check_command(options.command)
        COMMANDS[options.command](options)
    except BrokenPipeError:  # the reader of our output has gone (`edgewise list tasks | head -1`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        if options.debug:
            raise
        _complain(_one_line(error))
        return USER_ERROR
    return 0


def _complain(text: str) -> None:
    if is_first():
        print(f"edgewise: {text}", file=sys.stderr, flush=True)
    else:
        time.sleep(1)  # torchrun stops all as soon as one has ended: the first process has spoken by then


def _one_line(error: BaseException) -> str:
    """An error's message on one line, without control characters (names in it may come from files)."""
    text = str(error) or type(error).__name__
    return " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())


def _discover(options: argparse.Namespace) -> None:
    from pipelines.discover import discover
    from pipelines.summary import discovery_summary

    layers: list[Settings] = [] if options.config is None else [from_file(options.config)]
    outcome = discover(build(*layers, flag_settings(options)), options.overwrite)
    if not is_first():
        return
    print(discovery_summary(outcome.store.run, outcome.evaluation, outcome.reused, outcome.written))


def _evaluate(options: argparse.Namespace) -> None:
    from pipelines.evaluate import evaluate_run
    from pipelines.summary import evaluation_summary

    evaluation, path = evaluate_run(options.run, flag_settings(options))
    print(evaluation_summary(evaluation))
    print(f"wrote {path}")


def _tune(options: argparse.Namespace) -> None:
    from pipelines.tune import tune
    from pipelines.tune_flags import tune_request, tune_summary

    done = tune(tune_request(options))
    print(tune_summary(done))
    for path in done.written:
        print(f"wrote {path}")


def _progress(options: argparse.Namespace) -> None:
    from pipelines.progress import progress
    from pipelines.progress_flags import complaint, progress_request, progress_summary

    done = progress(progress_request(options))
    print(progress_summary(done))
    said = complaint(done)
    if said is not None:
        raise ConfigError(said)


def _scrub(options: argparse.Namespace) -> None:
    from pipelines.scrub import scrub_run, scrubbing_summary

    found, path = scrub_run(options.run, flag_settings(options), options.groups, options.samples)
    print(scrubbing_summary(found))
    print(f"wrote {path}")


def _export(options: argparse.Namespace) -> None:
    from pipelines.exports import export_stored
    from pipelines.store import RunStore

    store = RunStore(options.run)
    store.load()
    for path in export_stored(store, names_in(options.formats, "--format")):
        print(f"wrote {path}")


def _mib(options: argparse.Namespace) -> None:
    from pipelines.mib import submit

    for path in submit(options.runs, Path(options.out), options.form, options.file, options.folder, options.by):
        print(f"wrote {path}")


def _validate(options: argparse.Namespace) -> None:
    from pipelines.validate import validate_task

    settings = flag_settings(options)
    settings["task", "source"] = options.task
    for line in validate_task(build(settings), options.rows):
        print(line)


def _patch(options: argparse.Namespace) -> None:
    from pipelines.patch import patch, patch_paths

    config = build(flag_settings(options))
    if options.path:
        table, written = patch_paths(config, tuple(options.path), options.direction)
        print(table)
    else:
        written = patch(config, names_in(options.what, "--what"), options.method, options.direction)
    for path in written:
        print(f"wrote {path}")


def _intervene(options: argparse.Namespace) -> None:
    from pipelines.intervene import intervene
    from pipelines.intervene_flags import request_of
    from pipelines.intervene_summary import intervention_summary

    content, written = intervene(build(flag_settings(options)), request_of(options))
    print(intervention_summary(content))
    for path in written:
        print(f"wrote {path}")


def _label(options: argparse.Namespace) -> None:
    from pipelines.label import dry_run, label_run
    from pipelines.label_flags import label_request
    from pipelines.label_summary import label_summary

    request = label_request(options)
    if options.dry_run:
        print(dry_run(options.run, request))
        return
    done = label_run(options.run, request)
    print(label_summary(done.labels, done.failures, done.usage, done.shortened))
    for path in done.written:
        print(f"wrote {path}")


def _score(options: argparse.Namespace) -> None:
    from pipelines.label_flags import score_request
    from pipelines.label_summary import label_summary
    from pipelines.score import dry_run, score_run

    request = score_request(options)
    if options.dry_run:
        print(dry_run(options.run, request))
        return
    done = score_run(options.run, request)
    print(label_summary(done.labels, usage=done.usage))
    if done.left_out:
        print(done.left_out)
    for path in done.written:
        print(f"wrote {path}")


def _story(options: argparse.Namespace) -> None:
    from pipelines.story import tell
    from pipelines.story_flags import story_request, story_summary

    told = tell(options.run, story_request(options))
    print(story_summary(told))
    for path in told.written:
        print(f"wrote {path}")


def _import_labels(options: argparse.Namespace) -> None:
    from pipelines.foreign_flags import import_summary
    from pipelines.foreign_labels import import_labels

    print(import_summary(import_labels(options.run, options.place, options.format, options.source)))


def _export_labels(options: argparse.Namespace) -> None:
    from pipelines.foreign_labels import export_labels

    path, count = export_labels(options.run, options.format, options.model_id, options.source)
    print(f"wrote {path} ({count:,} labels)")


def _serve(options: argparse.Namespace) -> None:
    from pipelines.serve import serve

    serve(build(flag_settings(options)).model, options, lambda line: print(line, flush=True))


def _list(options: argparse.Namespace) -> None:
    from pipelines.listing import LISTINGS
    from pipelines.summary import table

    for line in table(LISTINGS[options.what](), left=2):
        print(line)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "discover": _discover,
    "evaluate": _evaluate,
    "tune": _tune,
    "progress": _progress,
    "scrub": _scrub,
    "export": _export,
    "mib": _mib,
    "validate": _validate,
    "patch": _patch,
    "intervene": _intervene,
    "check-transcoders": feature_commands.check_transcoders,
    "train-transcoders": feature_commands.train_transcoders,
    "trace": feature_commands.trace,
    "connections": feature_commands.connections,
    "label": _label,
    "score": _score,
    "story": _story,
    "import-labels": _import_labels,
    "export-labels": _export_labels,
    "serve": _serve,
    "list": _list,
}
"""What each command runs."""


if __name__ == "__main__":
    sys.exit(main())
