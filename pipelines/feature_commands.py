"""The commands that work on features: tracing prompts, training, checking and connecting transcoders. Loads nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pipelines.flags import flag_settings, names_in
from pipelines.settings import build


def check_transcoders(options: argparse.Namespace) -> None:
    """Whether transcoders fit the model that they are read for."""
    from pipelines.check_transcoders import as_json, check, check_summary

    found, model = check(build(flag_settings(options)).model, options)
    _show(options.json, as_json(found, model), check_summary(found, model))


def trace(options: argparse.Namespace) -> None:
    """The attribution graph of a prompt, or of a task's prompts."""
    from pipelines.trace import TraceSettings

    config = build(flag_settings(options))
    taken = {field.name for field in dataclasses.fields(TraceSettings)} - {
        "prompt",
        "targets",
        "model",
        "bos",
        "transcoders",
    }
    settings = TraceSettings(
        prompt=options.prompt or "",
        targets=tuple(options.targets),
        model=config.model,
        transcoders=config.transcoders,
        bos=config.task.bos,
        **{name: getattr(options, name) for name in taken},
    )
    if options.prompt is None:
        from pipelines.trace_summary import task_trace_summary
        from pipelines.trace_task import trace_task

        found = trace_task(config, settings, options.align, options.least_frequency, options.overwrite)
        store, lines = found[0], task_trace_summary(found[1], found[2])
    else:
        from pipelines.trace import trace
        from pipelines.trace_summary import trace_summary

        store, graph = trace(settings, config.out, names_in(options.formats, "--formats"), options.overwrite)
        lines = trace_summary(graph)
    print(lines)
    print(f"wrote {store.directory}")


def train_transcoders(options: argparse.Namespace) -> None:
    """Transcoders of one's own."""
    from discovery.training_settings import TrainingSettings
    from pipelines.train_transcoders import Corpus, train

    config = build(flag_settings(options))
    steps = options.steps or (500 if options.tokens is None else max(1, options.tokens // options.batch_tokens))
    settings = TrainingSettings(
        kind=options.kind,
        activation=options.activation,
        features=options.features,
        k=options.k,
        steps=steps,
        batch=options.batch_tokens,
        rate=options.rate,
        streams=options.streams,
        buffer=options.buffer,
        seed=config.seed,
    )
    corpus = Corpus(tuple(options.corpus), options.window, options.held_out)
    for line in train(config, corpus, settings, (options.reads, options.writes)):
        print(line)


def connections(options: argparse.Namespace) -> None:
    """What a feature is connected to by weights alone."""
    from pipelines.connections import as_json, connections_summary, find_connections

    config = build(flag_settings(options))
    found, origin = find_connections(options.feature, config.model, config.transcoders, options.top)
    _show(options.json, as_json(found, origin), connections_summary(found, origin))


def _show(place: str | None, content: str, summary: str) -> None:
    """What was found: as JSON alone for `-`, else in words, and as JSON in a file where one is named."""
    from pipelines.check_transcoders import write_json

    if place == "-":
        print(content)
        return
    print(summary)
    if place is not None:
        write_json(content, Path(place))
        print(f"wrote {place}")
