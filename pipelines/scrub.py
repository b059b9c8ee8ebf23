"""`edgewise scrub`: causal scrubbing of a stored circuit, with prompts grouped by what is said not to matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.evaluate import open_run
from pipelines.settings import ConfigError, Settings
from pipelines.store import CIRCUIT

SCRUBBING = "scrubbing.json"


def scrub_run(directory: str | Path, settings: Settings, by: str, samples: int) -> tuple[dict[str, Any], Path]:
    """Scrubs the circuit of a run on its held-out pairs; gives what was found and where it was written.

    by: what groups prompts (`discovery.prompt_groups`). Raises ConfigError for runs on features or spans, RunConflict
    as `evaluate_run` does.
    """
    from discovery.causal_scrubbing import Settings as Draws
    from discovery.causal_scrubbing import scrub
    from discovery.prompt_groups import group_prompts
    from discovery.task import split
    from graphs.exporters.circuit_json import read_circuit

    # Scrubbing makes its own ablated values: nothing needs to be measured, or aligned with corrupt prompts.
    store, inputs = open_run(directory, {**settings, ("ablation",): "zero"})
    config = inputs.config
    if config.transcoders.name is not None or config.task.spans != "none":
        raise ConfigError(f"{store.directory}: scrubbing works on graphs of heads and MLPs, without features and spans")
    draws = Draws(samples, config.evaluation.bootstrap, config.seed)
    held_out = split(inputs.task, config.evaluation.holdout, config.seed)[1]
    groups = group_prompts(held_out, config.task.source, by)
    inputs.prepare()
    circuit = read_circuit(store.path(CIRCUIT).read_bytes())
    own, grouped = (scrub(inputs.model, inputs.held_out, circuit, which, draws) for which in (None, groups))
    found = {
        "edges": circuit.edge_count,
        "metric": inputs.metric.name,
        "groups": by,
        "samples": samples,
        "seed": config.seed,
        "own": own.to_json(),
        "grouped": grouped.to_json(),
    }
    return found, store.write_json(SCRUBBING, found)


def scrubbing_summary(found: dict[str, Any]) -> str:
    """The table of `edgewise scrub`."""
    from pipelines.summary import table

    own = found["own"]
    alone = f"; {own['alone']} left out, whose length is their own" if own["alone"] else ""
    lines = [
        f"{found['edges']:,} edges, {found['metric']}, {own['pairs']} pairs{alone}; {found['samples']} draws for each",
        f"full {own['full']:.3f} (untouched model), random {own['random']:.3f} (logits of another prompt)",
        "",
    ]
    rows = [("kept edges carry values of", "prompts", "metric", "recovered", "interval")]
    for name, title in (("own", "the same prompt"), ("grouped", f"prompts with the same {found['groups']!r}")):
        one = found[name]
        interval = "" if one["low"] is None else f"[{one['low']:.2f}, {one['high']:.2f}]"
        rows.append((title, f"{one['alike']:.1f}", f"{one['scrubbed']:.3f}", f"{one['recovered']:.2f}", interval))
    return "\n".join([*lines, *table(rows, left=1)])
