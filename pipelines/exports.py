"""Pictures and files of a stored run, whatever command made it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.store import EXPORTS, GRAPH, RunStore


def export_stored(store: RunStore, formats: tuple[str, ...]) -> list[Path]:
    """Writes the run's graph in some formats and gives the files. Raises ConfigError naming a format that does not exist, and
    RunConflict where the run holds no graph yet."""
    if store.finished("task graph"):
        from pipelines.trace_task import export_traced_task

        return export_traced_task(store, formats)
    if store.path(GRAPH).exists():
        from pipelines.trace import export_traced

        return export_traced(store, formats)
    from pipelines.circuit_exports import export_run

    return [path for path in export_run(store, formats) if path.parent != store.directory]


def draw_again(store: RunStore) -> list[Path]:
    """Writes the run's pictures and files anew, in the formats that lie there."""
    table, stem = _table(store)
    suffixes = {path.name.removeprefix(stem) for path in store.path(EXPORTS).glob(f"{stem}.*")}
    return export_stored(store, tuple(name for name, line in table.items() if line.suffix in suffixes))


def _table(store: RunStore) -> tuple[Mapping[str, Any], str]:
    """The formats of the run's graph, and what its files are called."""
    from graphs.exporters import ATTRIBUTION_EXPORTERS, EXPORTERS, TASK_GRAPH_EXPORTERS

    if store.finished("task graph"):
        return TASK_GRAPH_EXPORTERS, "task_graph"
    return (ATTRIBUTION_EXPORTERS, "graph") if store.path(GRAPH).exists() else (EXPORTERS, "circuit")
