"""What every method of the table must do, on any model that has the protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from discovery.batch import Batch
from discovery.methods import METHODS
from discovery.metrics import Metric
from discovery.model import PatchableModel
from discovery.workload import Workload
from graphs.node_scores import NodeScores
from graphs.scores import EdgeScores

LEARNED = tuple(name for name, line in METHODS.items() if line.learned)
SEES_THE_MODEL = tuple(name for name in METHODS if name != "random")
LINEAR = ("eap", "eap-ig", "clean-corrupted")
QUICK = {
    "eap-ig-activations": {"steps": 1},
    "edge-masks": {"steps": 2, "samples": 2, "start": "eap"},
    "uniform-gradients": {"steps": 2, "samples": 2},
    "acdc": {"screen": False},
    "screen-verify": {"steps": 2, "order": "exact"},
    "conditional": {"base": "eap"},
}
"""Options under which a method says the same sort of thing sooner."""
CLEAN_ALONE = ("information-flow",)
"""Methods that do not look at the corrupt prompts."""
UNSIGNED = ("atp-star",)
"""Methods whose pairs have magnitudes; the sign of the mean is drawn only."""


def check_method(
    name: str, model: PatchableModel, workload: Workload, tolerance: float = 1e-5
) -> EdgeScores | NodeScores:
    """Faults that any method could have: shape, NaN, sign, dependence on batch sizes, state left behind."""
    method, options = METHODS[name].load(), METHODS[name].options(QUICK.get(name, {}))
    scores = method.score(model, workload, options)
    possible = universe(scores)
    assert scores.method == name
    assert scores.values.dtype == np.float32
    assert np.isfinite(scores.values[possible]).all()
    assert np.isnan(scores.values[~possible]).all()
    again = method.score(model, workload, options)
    close(scores, again, tolerance)
    if name in LEARNED:
        assert scores.stderr is None
        assert ((scores.values[possible] >= 0) & (scores.values[possible] <= 1)).all()
    elif name in SEES_THE_MODEL:
        score = partial(method.score, model, options=options)
        check_batch_sizes(score, workload, scores, tolerance)
        check_stderr(score, workload, scores, tolerance)
        if name not in CLEAN_ALONE:
            check_nothing_to_do(score, workload)
    return scores


def universe(scores: EdgeScores | NodeScores) -> np.ndarray:
    """What of `values` must be a number: every possible edge, or every node."""
    return scores.topology.possible if isinstance(scores, EdgeScores) else np.ones(scores.values.shape, dtype=bool)


def close(one: EdgeScores | NodeScores, other: EdgeScores | NodeScores, tolerance: float) -> None:
    """Equal up to a share of the largest score."""
    scale = np.nanmax(np.abs(one.values))
    assert scale > 0
    np.testing.assert_allclose(one.values, other.values, rtol=0, atol=tolerance * scale)


def check_batch_sizes(
    score: Callable[..., EdgeScores | NodeScores], workload: Workload, scores: EdgeScores | NodeScores, tolerance: float
) -> None:
    """The mean is over pairs: cutting batches into pieces of any size changes nothing."""
    pieces = [piece for batch in workload.batches for piece in split(batch)]
    assert len(pieces) > len(workload.batches)
    close(scores, score(replace(workload, batches=tuple(pieces))), tolerance)


def check_stderr(
    score: Callable[..., EdgeScores | NodeScores], workload: Workload, scores: EdgeScores | NodeScores, tolerance: float
) -> None:
    """`on_batch` gives every pair's own scores; their mean and standard error are what is returned."""
    seen: dict[int, torch.Tensor] = {}
    score(workload, on_batch=lambda number, values: seen.update({number: values.clone()}))
    assert list(seen) == list(range(len(workload.batches)))
    assert [len(values) for values in seen.values()] == [len(batch) for batch in workload.batches]
    pairs = torch.cat(list(seen.values())).double().numpy()
    possible = universe(scores)
    scale = np.nanmax(np.abs(scores.values))
    values = np.abs(scores.values) if scores.method in UNSIGNED else scores.values
    np.testing.assert_allclose(values[possible], pairs.mean(0)[possible], rtol=0, atol=tolerance * scale)
    expected = pairs.std(0, ddof=1) / np.sqrt(len(pairs))
    assert scores.stderr is not None
    np.testing.assert_allclose(scores.stderr[possible], expected[possible], rtol=0, atol=tolerance * scale)
    assert np.isnan(scores.stderr[~possible]).all()


def check_nothing_to_do(score: Callable[..., EdgeScores | NodeScores], workload: Workload) -> None:
    """Where clean and corrupt are one prompt, no edge carries a difference."""
    same = tuple(replace(batch, corrupt=batch.clean) for batch in workload.batches)
    scale = np.nanmax(np.abs(score(workload).values))
    values = score(replace(workload, batches=same)).values
    assert np.nanmax(np.abs(values)) <= 1e-5 * scale


def check_needs_gradient(name: str, model: PatchableModel, workload: Workload, metric: Metric) -> None:
    """A gradient method names the metric that it cannot work with, in one line."""
    method = METHODS[name].load()
    with pytest.raises(ValueError, match=metric.name) as error:
        method.score(model, replace(workload, metric=metric), method.Options())
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def split(batch: Batch) -> list[Batch]:
    """The batch in two uneven pieces (itself where it has a single pair)."""
    pairs = len(batch)
    return [batch] if pairs == 1 else [take(batch, list(range(1))), take(batch, list(range(1, pairs)))]


def take(batch: Batch, pairs: list[int]) -> Batch:
    """Some of a batch's pairs as a batch of their own, with the same padding."""
    new_pair = {pair: place for place, pair in enumerate(pairs)}

    def kept(owner: torch.Tensor) -> tuple[torch.Tensor, dict[int, int]]:
        places = [i for i, pair in enumerate(owner.tolist()) if pair in new_pair]
        return torch.tensor(places, dtype=torch.long), {old: new for new, old in enumerate(places)}

    def renumber(values: torch.Tensor, table: dict[int, int]) -> torch.Tensor:
        return torch.tensor([table[value] for value in values.tolist()], dtype=torch.long)

    rows, new_row = kept(batch.row_pair)
    reads, new_read = kept(batch.row_pair[batch.read_row])
    candidates, new_candidate = kept(batch.candidate_pair)
    steps, _ = kept(batch.candidate_pair[batch.step_candidate])
    return Batch(
        clean=batch.clean[rows],
        corrupt=batch.corrupt[rows],
        mask=batch.mask[rows],
        positions=batch.positions[rows],
        row_pair=renumber(batch.row_pair[rows], new_pair),
        read_row=renumber(batch.read_row[reads], new_row),
        read_column=batch.read_column[reads],
        pair_read=renumber(batch.pair_read[pairs], new_read),
        step_read=renumber(batch.step_read[steps], new_read),
        step_token=batch.step_token[steps],
        step_candidate=renumber(batch.step_candidate[steps], new_candidate),
        candidate_pair=renumber(batch.candidate_pair[candidates], new_pair),
        candidate_right=batch.candidate_right[candidates],
        indices=tuple(batch.indices[pair] for pair in pairs),
        spans=None if batch.spans is None else batch.spans[rows],
        span_names=batch.span_names,
    )
