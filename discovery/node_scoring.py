"""What node-level methods share: means and standard errors over pairs of the effects of nodes and their parts."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from discovery.distributed import own_batches
from discovery.model import PatchableModel
from discovery.node_effects import NO_FIXES, Fixes
from discovery.scoring import Moments, OnBatch, require_gradient, require_slope
from discovery.workload import Workload
from graphs.node_scores import NodeScores


def mean_node_scores(
    model: PatchableModel,
    workload: Workload,
    method: str,
    neurons: bool = False,
    fixes: Fixes = NO_FIXES,
    on_batch: OnBatch | None = None,
) -> NodeScores:
    """Mean over pairs of the effects of nodes, q, k and v vectors and (where wanted) neurons.

    on_batch is called with the pairs' own scores of the sources [pair src]. Raises ValueError for metrics without a
    gradient, or whose gradient on the clean run is zero (KL).
    """
    require_gradient(workload.metric, method)
    require_slope(workload.metric, method)
    sources, slots, hidden = Moments(), Moments(), Moments()
    own = own_batches(workload)
    with tqdm(total=sum(len(batch) for _, batch in own), desc=method, unit="pair", delay=1, leave=False) as bar:
        for number, batch in own:
            effects = model.linearize_nodes(batch, workload.metric, workload.ablation, fixes, neurons)
            sources.add(effects.sources)
            slots.add(effects.slots)
            if effects.neurons is not None:
                hidden.add(effects.neurons)
            if on_batch is not None:
                on_batch(number, effects.sources)
            bar.update(len(batch))
    for moments in (sources, slots, *([hidden] if neurons else [])):
        moments.join()
    ports = np.array([slot.port is not None for slot in model.topology.targets])
    values, stderr = _single(sources)
    parts, parts_stderr = _single(slots)
    inner, inner_stderr = _single(hidden) if neurons else (None, None)
    return NodeScores(
        model.topology,
        values,
        method,
        stderr,
        np.where(ports, parts, np.float32("nan")),
        None if parts_stderr is None else np.where(ports, parts_stderr, np.float32("nan")),
        inner,
        inner_stderr,
    )


def _single(moments: Moments) -> tuple[Float[np.ndarray, " *any"], Float[np.ndarray, " *any"] | None]:
    """Mean and standard error in float32."""
    stderr = moments.stderr()
    return moments.mean().astype(np.float32), None if stderr is None else stderr.astype(np.float32)
