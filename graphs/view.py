"""What an exporter is given: a circuit and what is to be said of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from graphs.circuit import Circuit
from graphs.error_share import error_share
from graphs.label import Label
from graphs.named import told
from graphs.prune import drop_dead_ends

MOST_DRAWN = 1000
"""Edges that a picture can hold; files hold any number."""


class ExporterUnavailable(ValueError):
    """An exporter that this machine cannot run; the message says what is missing."""


@dataclass(frozen=True, eq=False)
class CircuitView:
    """A circuit, its labels and its evaluation. All texts may be hostile: exporters escape them."""

    circuit: Circuit
    """What is exported. Pictures leave out its dead ends; files hold it whole."""
    title: str = "circuit"
    """One line, such as the model and the task."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Short text by node name, shown in the node's box."""
    evaluation: Mapping[str, float | int | None] = field(default_factory=dict)
    """Numbers of the evaluation: `faithfulness` with `low` and `high`, `completeness`, `stability`, `cmd`, `cpr`;
    others are kept in files."""
    metric: str = ""
    """The metric's name: the unit of the scores."""
    d_model: int | None = None
    """Width of the model's residual stream, for formats that state it."""
    named: Mapping[str, Label] = field(default_factory=dict)
    """Labels with all that is known of them (role, scores, causal test), by node name without a position; hostile. `labels`
    decides what is shown where it has the node."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the circuit, one sentence each."""

    @cached_property
    def drawn(self) -> Circuit:
        """The circuit without its dead ends; of a very large one its `MOST_DRAWN` strongest edges, less dead ends."""
        alive = drop_dead_ends(self.circuit)
        if alive.edge_count <= MOST_DRAWN:
            return alive
        rows, columns = (places[:MOST_DRAWN] for places in alive.places)
        kept = np.zeros_like(alive.kept)
        kept[rows, columns] = True
        return drop_dead_ends(replace(alive, kept=kept))

    @cached_property
    def texts(self) -> dict[str, str]:
        """What each node is called, by name."""
        return {**{name: label.text for name, label in self.named.items()}, **self.labels}

    def tip(self, name: str) -> str:
        """Everything known of a node, in lines; hostile."""
        lines = [f"{name}: {self.texts[name]}" if self.texts.get(name) else name]
        return "\n".join([*lines, *(told(self.named[name]) if name in self.named else ())])

    @property
    def numbers(self) -> tuple[str, ...]:
        """What the title says in numbers: edges, dead ends, faithfulness with its interval, completeness, stability, CMD,
        CPR."""
        count, possible = drop_dead_ends(self.circuit).edge_count, self.circuit.topology.edge_count
        parts = [f"{count:,} of {possible:,} edges ({percent(count, possible)})"]
        if count < self.circuit.edge_count:
            parts.append(f"{self.circuit.edge_count - count:,} dead ends not drawn")
        if self.drawn.edge_count < count:
            parts.append(f"only the strongest {self.drawn.edge_count:,} drawn")
        errors = error_share(self.circuit)
        if errors is not None:
            parts.append(f"error nodes (e) {percent(errors, 1)} of |score|")
        low, high = self.evaluation.get("low"), self.evaluation.get("high")
        interval = f" [{low:z.2f}, {high:z.2f}]" if low is not None and high is not None else ""
        for key, digits, tail in (
            ("faithfulness", 2, interval),
            ("completeness", 2, ""),
            ("stability", 2, ""),
            ("cmd", 3, ""),
            ("cpr", 3, ""),
        ):
            value = self.evaluation.get(key)
            if value is not None:
                parts.append(f"{key.upper() if len(key) == 3 else key} {value:z.{digits}f}{tail}")
        return tuple(parts)

    @property
    def summary(self) -> str:
        """The numbers as one line."""
        return " · ".join(self.numbers)


def percent(part: int | float, whole: int) -> str:
    """A share in per cent, to two significant digits (three just below the whole)."""
    value = 100 * part / whole if part < whole else 100.0
    return f"{value:.2g} %" if value < 99.5 else f"{value:.3g} %"
