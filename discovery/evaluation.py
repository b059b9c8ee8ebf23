"""What an evaluation says: one record per circuit size, and the curve that they make. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from discovery.statistics import area


@dataclass(frozen=True)
class Evaluation:
    """How well one circuit stands for the whole model."""

    size: float
    """Share of the possible edges that was selected, before dead ends were dropped."""
    edges: int
    """Edges really in the circuit."""
    faithfulness: float
    """(m(circuit) - m(empty)) / (m(full) - m(empty)), m the mean of the metric over pairs; 1 = as the full model."""
    low: float | None = None
    """Lower end of the bootstrap interval of the faithfulness over pairs; None when it was not computed."""
    high: float | None = None
    """Upper end."""
    completeness: float | None = None
    """The same ratio for the complement (every other edge); 0 = nothing is left. None when it was not computed."""
    random: float | None = None
    """Mean faithfulness of random circuits with as many selected edges; None when none were run."""
    random_completeness: float | None = None
    """Mean completeness of these random circuits."""
    train: float | None = None
    """Faithfulness on pairs that were scored on; None where the same pairs are scored and evaluated on."""
    error_share: float | None = None
    """Share of the circuit's |score| on edges of error nodes; None where the graph has no error nodes."""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain data, the share of error nodes only where there are some."""
        fields = asdict(self)
        return fields if self.error_share is not None else {k: v for k, v in fields.items() if k != "error_share"}


@dataclass(frozen=True)
class Curve:
    """Evaluations of circuits of growing sizes from the same scores."""

    points: tuple[Evaluation, ...]
    """By ascending size."""
    by: str
    """What the edges were selected by: absolute or signed scores."""
    full: float
    """m(full): mean metric of the untouched model."""
    empty: float
    """m(empty): mean metric with every edge ablated."""
    pairs: int
    """Number of prompt pairs."""
    known: float
    """Share of the pairs whose answer the untouched model knows: see `Measured.known`."""
    auroc: float | None = None
    """Area under the ROC of the scores against a ground truth, possible edges as the universe; None without one."""

    @property
    def sizes(self) -> list[float]:
        """Share of the edges of each point."""
        return [point.size for point in self.points]

    @property
    def cmd(self) -> float:
        """Circuit-model distance: trapezoid of |1 - faithfulness| over the sizes; 0 is best.

        MIB's; there selected by absolute score.
        """
        return area([abs(1 - point.faithfulness) for point in self.points], self.sizes)

    @property
    def cpr(self) -> float:
        """Circuit performance ratio: trapezoid of the faithfulness over the sizes; it has no upper bound.

        MIB's; there selected by signed score.
        """
        return area([point.faithfulness for point in self.points], self.sizes)

    @property
    def cmd_log(self) -> float:
        """Trapezoid of |1 - faithfulness| over log10(size): small circuits weigh as much as large ones; 0 is best."""
        return area([abs(1 - point.faithfulness) for point in self.points], self.sizes, log=True)

    @property
    def baselines(self) -> dict[str, float | None]:
        """CMD and CPR of the random circuits' means, and of the same circuits on the scoring split; None where not run."""
        found: dict[str, float | None] = {}
        for name in ("random", "train"):
            values = [value for value in (getattr(point, name) for point in self.points) if value is not None]
            whole = len(values) == len(self.points)
            found[f"cmd_{name}"] = area([abs(1 - value) for value in values], self.sizes) if whole else None
            found[f"cpr_{name}"] = area(values, self.sizes) if whole else None
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of `evaluation.json`; `from_json` reads it back."""
        return {
            "curve": [point.to_json() for point in self.points],
            "cmd": self.cmd,
            "cpr": self.cpr,
            "cmd_log": self.cmd_log,
            **self.baselines,
            "auroc": self.auroc,
            "by": self.by,
            "full": self.full,
            "empty": self.empty,
            "pairs": self.pairs,
            "known": self.known,
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Curve:
        """The curve that `to_json` wrote. Raises ValueError naming what is missing or not known."""
        try:
            points = tuple(Evaluation(**point) for point in content["curve"])
            rest = {name: content[name] for name in ("by", "full", "empty", "pairs", "known", "auroc")}
        except KeyError as error:
            raise ValueError(f"an evaluation needs the field {error}") from None
        except TypeError as error:
            raise ValueError(f"a point of an evaluation's curve is wrong: {error}") from None
        return Curve(points, **rest)


@dataclass(frozen=True)
class RandomComparison:
    """One circuit beside random circuits of whole paths, with as many edges or a few more."""

    edges: int
    """The circuit's edges."""
    faithfulness: float
    """The circuit's."""
    random: tuple[float, ...]
    """The random circuits', in the order in which they were drawn."""

    def percentile(self, q: int | float) -> float:
        """The q-th percentile (0..100) of the random circuits' faithfulness."""
        return float(np.percentile(self.random, q))

    @property
    def rank(self) -> float:
        """Share of the random circuits that are less faithful than the circuit."""
        return float(np.mean(np.array(self.random) < self.faithfulness))

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, with the 95th percentile of the random circuits."""
        return {
            "edges": self.edges,
            "faithfulness": self.faithfulness,
            "percentile_95": self.percentile(95),
            "rank": self.rank,
            "random": list(self.random),
        }
