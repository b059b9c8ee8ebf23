"""Which method scores edges where none was named: exact verification where it is cheap, else integrated gradients."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipelines.config import RunConfig
from pipelines.cost import affordable, operations

if TYPE_CHECKING:
    from pipelines.inputs import Inputs
    from pipelines.store import RunStore

AUTO = "auto"
"""The name under which the choice is left open."""
CANDIDATES = ("eap-ig", "screen-verify")
"""What it may be."""
_log = logging.getLogger("edgewise")


def method_name(run: Mapping[str, Any]) -> str:
    """The method of a run (the content of run.json): the one that was chosen where the settings left it open."""
    return run.get(AUTO, {}).get("method") or run["config"]["method"]["name"]


def with_method(config: RunConfig, inputs: Inputs, store: RunStore) -> RunConfig:
    """The settings with the method that they leave open chosen: as the run has chosen before, else as `_choice` says.

    The choice is put in run.json and said on standard error. Inputs must be prepared.
    """
    from discovery.distributed import process_count
    from pipelines.processes import is_first

    if config.method.name != AUTO or config.method.file is not None:
        return config
    kept = store.run.get(AUTO) if store.finished("scores") or process_count() == 1 else None
    choice: dict[str, Any] = kept or _choice(config, inputs)
    if kept is None:
        store.note(inputs.clock.seconds, **{AUTO: choice})
        if is_first():
            _log.info("method %s: %s", choice["method"], choice["because"])
    return dataclasses.replace(config, method=dataclasses.replace(config.method, name=choice["method"]))


def _choice(config: RunConfig, inputs: Inputs) -> dict[str, Any]:
    """The method, and why. It depends on sizes alone and on no clock, so that the same run always chooses the same."""
    from discovery.distributed import process_count
    from discovery.methods.screen_verify import default_budget

    quick, sure = CANDIDATES
    if config.convention == "mib":
        return {"method": quick, "because": "what MIB's numbers are made with"}
    if process_count() > 1:
        return {"method": quick, "because": f"{sure} works in one process only"}
    if config.transcoders.name is not None and config.transcoders.recheck:
        return {"method": quick, "because": "features that gradients misjudge are scored by real runs (--recheck)"}
    edges = default_budget(inputs.model.topology)
    cost, limit = operations(inputs, inputs.train, edges), affordable(inputs)
    found = {"method": sure if cost <= limit else quick, "operations": cost, "limit": limit}
    dear = f"patching {edges:,} edges exactly takes about {cost:.1g} floating-point operations"
    return found | {"because": f"{dear}, {'under' if cost <= limit else 'over'} {limit:.0e}"}
