"""`edgewise patch`: activation or attribution patching of nodes, stored as numbers and drawn as heat maps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock, peak_memory_bytes
from pipelines.config import RunConfig
from pipelines.discover import default_directory, settings_of
from pipelines.fingerprint import edgewise_version, versions
from pipelines.inputs import Inputs, read_task
from pipelines.model_source import model_title
from pipelines.settings import ConfigError
from pipelines.store import RunStore

if TYPE_CHECKING:
    from discovery.heat_map import HeatMap, NodePatching, PatchMethod, Site
    from discovery.path_patching import PathPatching

MAPS: dict[str, Site] = {"residual": "residual", "attention": "attention", "mlp": "mlp", "heads": "head"}
"""Maps as users name them -> what is patched in them."""
METHODS: dict[str, PatchMethod] = {"activation": "exact", "attribution": "attribution"}
"""As users name them -> as the engine does."""
_TITLES: dict[Site, str] = {
    "residual": "residual stream",
    "attention": "attention output",
    "mlp": "MLP output",
    "head": "head output",
}
PATCH = "patch.json"


def patch(config: RunConfig, what: tuple[str, ...], method: str, direction: str) -> list[Path]:
    """Patches every node of the named maps on all pairs; gives the paths of patch.json and of one SVG per map.

    Raises ConfigError for a map that does not exist. Numbers are kept as they are; pictures show the change that the
    patch makes, as a share of the clean run's metric less the corrupt run's.
    """
    for name in what:
        if name not in MAPS:
            raise ConfigError(f"--what {name}: there is no such map (maps: {', '.join(MAPS)})")
    from discovery.ablation import Ablation
    from discovery.activation_patching import patch_nodes
    from discovery.patch_donors import check_ablation

    check_ablation(Ablation(config.ablation), "noising" if direction == "noising" else "denoising", "nodes")
    # Nothing is chosen by these numbers, so nothing needs to be held out.
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, holdout=0.0))
    clock = Clock()
    with clock.time("task"):
        task = read_task(config)
    inputs = Inputs(config, task, clock)
    inputs.prepare()
    with clock.time("patch"):
        found = patch_nodes(
            inputs.model,
            inputs.train,
            sites=[MAPS[name] for name in what],
            method=METHODS[method],
            direction="noising" if direction == "noising" else "denoising",
        )
    store = RunStore(config.out or default_directory(config, f"{method}-patching-{direction}"))
    paths = [store.write_json(PATCH, found.to_json() | _record(config, inputs, clock))]
    title = f"{task.name} in {model_title(config.model)}: {method} patching, {direction}"
    title += "" if config.ablation == "counterfactual" else f" ({config.ablation})"
    return paths + [
        store.write_bytes(f"patch-{name}.svg", _picture(found, one, title)) for name, one in zip(what, found.maps)
    ]


def patch_paths(config: RunConfig, paths: tuple[str, ...], direction: str) -> tuple[str, list[Path]]:
    """Patches every named path on all pairs; gives a table to read and the path of patch.json.

    Raises BadPath for what is no path here.
    """
    from discovery import path_patching
    from discovery.ablation import Ablation
    from discovery.patch_donors import check_ablation

    check_ablation(Ablation(config.ablation), "noising" if direction == "noising" else "denoising", "paths")
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, holdout=0.0))
    wanted = [path_patching.Path.parse(text) for text in paths]
    clock = Clock()
    with clock.time("task"):
        task = read_task(config)
    inputs = Inputs(config, task, clock)
    inputs.prepare()
    with clock.time("patch"):
        found = path_patching.patch_paths(
            inputs.model, inputs.train, wanted, "noising" if direction == "noising" else "denoising"
        )
    store = RunStore(config.out or default_directory(config, f"path-patching-{direction}"))
    return _path_table(found), [store.write_json(PATCH, found.to_json() | _record(config, inputs, clock))]


def _path_table(found: PathPatching) -> str:
    """The effects as lines of text."""
    width = max(len(path.path) for path in found.paths)
    head = (
        f"{found.metric}: {found.clean:.3f} clean, {found.corrupt:.3f} corrupt; {found.direction}, {found.pairs} pairs"
    )
    rows = [
        f"{path.path:<{width}}  {path.effect:+9.4f}  "
        + (" " * 9 if path.stderr is None else f"+- {path.stderr:.4f}")
        + f"  {path.share:+8.1%}"
        for path in found.paths
    ]
    return "\n".join([head, f"{'path':<{width}}  {'effect':>9}  {'stderr':>9}  {'of gap':>8}", *rows])


def _record(config: RunConfig, inputs: Inputs, clock: Clock) -> dict[str, Any]:
    """Where numbers come from."""
    return {
        "edgewise": edgewise_version(),
        "settings": settings_of(config),
        "inputs": inputs.hashes(),
        "versions": versions(),
        "seconds": {step: round(seconds, 4) for step, seconds in clock.seconds.items()},
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _picture(found: NodePatching, one: HeatMap, title: str) -> bytes:
    """One map as SVG."""
    from graphs.exporters.heatmap import HeatmapPanel, heatmap_svg

    base = 1.0 if found.direction == "noising" else 0.0
    panel = HeatmapPanel(
        title=_TITLES[one.site],
        values=one.normalized - base,
        row_names=one.rows,
        column_names=one.columns,
        row_label="layer",
        column_label="head" if one.site == "head" else "position",
    )
    scale = f"{found.metric} {found.clean:.3g} clean, {found.corrupt:.3g} corrupt"
    return heatmap_svg([panel], f"{title} ({scale})", "share of the gap")
