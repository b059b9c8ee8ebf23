"""What gradient methods share: means and standard errors over pairs, and refusals of metrics that cannot work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from discovery.batch import Batch
from discovery.distributed import own_batches, process_count, smallest, summed
from discovery.metrics import Metric
from discovery.model import PatchableModel, Point
from discovery.rules import PLAIN, Rules
from discovery.workload import Workload
from graphs.scores import EdgeScores
from graphs.topology import Topology

OnBatch = Callable[[int, Tensor], None]
"""Called with a batch's number and its pairs' own scores [pair src dst], float32 on the CPU, after each batch."""


_VALUES = 2**18
"""Numbers that `Moments` looks at in one go: beside its two tables it needs next to nothing, however large the graph."""


class Moments:
    """Running mean and spread over pairs, in float64, whatever the sizes of the pieces (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros((), dtype=torch.float64)
        self._squares = torch.zeros((), dtype=torch.float64)  # sum of squared distances from the mean

    def add(self, scores: Float[Tensor, "pair ..."]) -> None:
        """Takes in some pairs' scores."""
        new = len(scores)
        if not new:
            return
        if not self.count:
            self._mean, self._squares = (scores.new_zeros(scores.shape[1:], dtype=torch.float64) for _ in range(2))
        total = self.count + new
        pieces = (table.flatten().split(max(1, _VALUES // new)) for table in (self._mean, self._squares))
        for mean, squares, some in zip(*pieces, scores.flatten(1).split(max(1, _VALUES // new), 1), strict=True):
            some = some.to(torch.float64)
            own = some.mean(0)
            step = own - mean
            mean += step * (new / total)
            squares += (some - own).square_().sum(0) + step.square_() * (self.count * new / total)
        self.count = total

    def join(self) -> None:
        """Takes in what the other processes have added, if there are any. Raises ValueError where one has added nothing."""
        if process_count() == 1:
            return
        if not smallest(self.count):
            raise ValueError("there are fewer batches than processes: give smaller batches, or fewer processes")
        total = int(summed(torch.tensor(self.count)))
        mean = summed(self._mean * self.count) / total
        self._squares = summed(self._squares + (self._mean - mean).square() * self.count)
        self._mean, self.count = mean, total

    def mean(self) -> Float[np.ndarray, " *any"]:
        """The mean, float64. Raises ValueError when nothing was added."""
        if not self.count:
            raise ValueError("there are no prompt pairs to score")
        return self._mean.numpy()

    def stderr(self) -> Float[np.ndarray, " *any"] | None:
        """Standard error of the mean, float64; None for a single pair."""
        return (self._squares / (self.count - 1) / self.count).sqrt().numpy() if self.count > 1 else None


class PairMoments(Moments):
    """Moments of the scores of a graph's edges."""

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self._topology = topology

    def scores(self, method: str) -> EdgeScores:
        """Mean and standard error of the mean (none for a single pair). Raises ValueError when nothing was added."""
        mean, stderr = as_table(self.mean(), self._topology), self.stderr()
        return EdgeScores(self._topology, mean, method, None if stderr is None else as_table(stderr, self._topology))


def as_table(values: Float[np.ndarray, "src dst"], topology: Topology) -> Float[np.ndarray, "src dst"]:
    """`values` as float32 with NaN where no edge is possible."""
    return np.where(topology.possible, values, np.nan).astype(np.float32)


def linear_scores(
    model: PatchableModel,
    workload: Workload,
    points: Sequence[Point],
    method: str,
    on_batch: OnBatch | None = None,
    rules: Rules = PLAIN,
) -> EdgeScores:
    """Source differences times the weighted gradients at `points`: the mean over pairs, whatever the batch sizes."""
    require_gradient(workload.metric, method)

    def score(batch: Batch) -> Float[Tensor, "pair src dst"]:
        return model.linearize(batch, workload.metric, points, workload.ablation, rules)

    return mean_scores(model, workload, score, method, on_batch)


def mean_scores(
    model: PatchableModel,
    workload: Workload,
    score: Callable[[Batch], Float[Tensor, "pair src dst"]],
    method: str,
    on_batch: OnBatch | None = None,
) -> EdgeScores:
    """The mean over pairs of what `score` gives for each batch, and its standard error."""
    moments, own = PairMoments(model.topology), own_batches(workload)
    with tqdm(total=sum(len(batch) for _, batch in own), desc=method, unit="pair", delay=1, leave=False) as bar:
        for number, batch in own:
            scores = score(batch)
            weights = workload.weights(batch)
            if weights is not None:
                scores = scores * weights.view(-1, 1, 1)
            moments.add(scores)
            if on_batch is not None:
                on_batch(number, scores)
            del scores  # before the next batch's passes: large graphs have tens of megabytes a pair
            bar.update(len(batch))
    moments.join()
    return moments.scores(method)


def require_gradient(metric: Metric, method: str) -> None:
    """Raises ValueError when the metric has no gradient."""
    if not metric.differentiable:
        raise ValueError(
            f"metric {metric.name!r} has no gradient, which method {method!r} needs: "
            "choose another metric (such as logit-diff) or method 'exact'"
        )


def require_slope(metric: Metric, method: str) -> None:
    """Raises ValueError when the metric's gradient on the clean run is zero whatever the model does."""
    if metric.flat_when_clean:
        raise ValueError(
            f"metric {metric.name!r} is flat on the clean run, so method {method!r} would score every edge zero: "
            "use method 'eap-ig' or 'clean-corrupted', or another metric (such as logit-diff)"
        )
