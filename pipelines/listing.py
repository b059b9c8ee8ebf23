"""What can be named in settings: `edgewise list models|tasks|methods|exporters|metrics`."""

from __future__ import annotations

from collections.abc import Callable

Line = tuple[str, str]
"""Name, and one line about it."""


def models() -> list[Line]:
    """The embedded model and the supported families of Hugging Face models (`model_type` of their config.json)."""
    from discovery.architectures import ARCHITECTURES

    embedded = ("(no --model)", "the embedded model: small, trained on generated English; see docs/demo_model.md")
    return [embedded, *((name, "any Hugging Face name or directory of this model_type") for name in ARCHITECTURES)]


def tasks() -> list[Line]:
    """Built-in generators, with their options."""
    from discovery.tasks.table import GENERATORS

    lines = []
    for name, task in GENERATORS.items():
        options = "; ".join(f"{key} = {' | '.join(values)}" for key, values in task.variants.items())
        lines.append((name, task.description + (f" ({options})" if options else "")))
    return [*lines, ("FILE or NAME", "a .jsonl, .csv or .parquet file, or a Hugging Face dataset (see docs/tasks.md)")]


def methods() -> list[Line]:
    """Ways to score edges."""
    from discovery.methods import METHODS

    auto = ("auto", "the default: screen-verify where exact patching is cheap (a small model), else eap-ig")
    return [auto, *((name, method.summary) for name, method in METHODS.items())]


def exporters() -> list[Line]:
    """Formats of circuits, and of traced prompts."""
    from graphs.exporters import ATTRIBUTION_EXPORTERS, EXPORTERS

    lines = [(name, exporter.description) for name, exporter in EXPORTERS.items()]
    return lines + [
        (name, f"traced prompts: {exporter.description}") for name, exporter in ATTRIBUTION_EXPORTERS.items()
    ]


def metrics() -> list[Line]:
    """What can be measured."""
    from discovery.metrics import METRICS

    return [(name, metric.summary) for name, metric in METRICS.items()]


LISTINGS: dict[str, Callable[[], list[Line]]] = {
    "models": models,
    "tasks": tasks,
    "methods": methods,
    "exporters": exporters,
    "metrics": metrics,
}
