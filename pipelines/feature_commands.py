"""The commands that work on features: tracing prompts, training, checking and connecting transcoders. Loads nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from pipelines.flags import flag_settings, names_in
from pipelines.settings import build


def check_transcoders(options: argparse.Namespace) -> None:
    """Whether transcoders fit the model that they are read for."""
    from pipelines.check_transcoders import as_json, check, check_summary, write_json

    found, model = check(build(flag_settings(options)).model, options)
    if options.json == "-":
        print(as_json(found, model))
        return
    print(check_summary(found, model))
    if options.json is not None:
        write_json(as_json(found, model), Path(options.json))
        print(f"wrote {options.json}")


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
    from pipelines.check_transcoders import write_json
    from pipelines.connections import as_json, connections_summary, find_connections

    config = build(flag_settings(options))
    found, origin = find_connections(options.feature, config.model, config.transcoders, options.top)
    if options.json == "-":
        print(as_json(found, origin))
        return
    print(connections_summary(found, origin))
    if options.json is not None:
        write_json(as_json(found, origin), Path(options.json))
        print(f"wrote {options.json}")
