"""What stands in each row of a circuit's picture: boxes, and which of them stay side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphs.circuit import Circuit
from graphs.escape import display_width, wrapped
from graphs.node import PORTS, NodeId, Slot

CELL_HEIGHT, LABEL_HEIGHT, TAB_HEIGHT, TAB_WIDTH = 22.0, 12.0, 10.0, 15.0
_CELL_WIDTH, _KV_WIDTH, _LABEL_LENGTH, _LABEL_LINES = 52.0, 36.0, 28, 2


@dataclass(frozen=True)
class Cell:
    """One box: a node, or the key/value head that several heads share."""

    name: str
    """The node's name; `a2.kv0` for a shared key/value head."""
    kind: str
    """The node's kind, or `kv`."""
    label: tuple[str, ...]
    """Further lines, already cut to length; empty for none."""
    x: float
    """Left edge."""
    y: float
    """Upper edge."""
    width: float
    """Width."""
    height: float
    """Height, without the tabs below."""


@dataclass(frozen=True)
class Block:
    """Boxes that stay side by side: one node, or a shared key/value head and its query heads."""

    cells: tuple[Cell, ...]
    nodes: tuple[NodeId, ...]
    slots: tuple[tuple[Slot, float], ...]  # with the offset of its tab from the block's left edge

    @property
    def width(self) -> float:
        return sum(cell.width for cell in self.cells)

    @property
    def ends(self) -> tuple[NodeId | Slot, ...]:
        """Its sources and its slots. (A shared k slot has the name of a query head that may stand in another block.)"""
        return (*self.nodes, *(slot for slot, _ in self.slots))

    @property
    def middle(self) -> bool:
        """Whether the block stands in the middle column."""
        return self.cells[0].kind not in ("head", "kv", "feature")


def blocks_by_row(circuit: Circuit, labels: Mapping[str, str]) -> list[list[Block]]:
    """The blocks of every node with a kept edge, by row from the bottom up, in graph order within a row.

    A layer has a row of heads and, above it, one for its MLP (or its features, with the error node in the middle); where
    attention and MLP are parallel both share a row.
    """
    drawn = _Drawn(circuit, labels)
    rows: dict[float, list[Block]] = defaultdict(list)
    grouped: set[NodeId] = set()
    for slot in drawn.slots:
        fed = drawn.fed(slot)
        alive = [node for node in fed if node in drawn.writers]
        if len(fed) > 1 and alive and fed[0] not in grouped:
            grouped.update(fed)
            rows[_height_of(slot.node, False)].append(_shared_block(drawn, slot, alive))
    parallel = _parallel_layers(circuit)
    ends = {slot.node for slot in drawn.slots if not drawn.fed(slot)}
    single = [node for node in circuit.topology.sources if node in drawn.writers and node not in grouped]
    for node in [*single, *sorted(ends, key=str)]:
        rows[_height_of(node, node.layer in parallel)].append(_single_block(drawn, node))
    return [rows[key] for key in sorted(rows)]


class _Drawn:
    """What of a circuit is drawn."""

    def __init__(self, circuit: Circuit, labels: Mapping[str, str]) -> None:
        self.topology = circuit.topology
        self.labels = {name: wrapped(label, _LABEL_LENGTH, _LABEL_LINES) for name, label in labels.items()}
        for node in self.topology.sources:  # a node has its label at every span
            if node.position is not None and str(node.at(None)) in self.labels:
                self.labels.setdefault(str(node), self.labels[str(node.at(None))])
        self.slots = [self.topology.targets[column] for column in np.flatnonzero(circuit.kept.any(axis=0))]
        self.writers = {self.topology.sources[row] for row in np.flatnonzero(circuit.kept.any(axis=1))}
        self.incoming = dict(zip(self.topology.targets, circuit.kept.sum(axis=0).tolist()))
        names = {str(slot.node): "" for slot in self.slots} | {str(node): node.kind for node in self.writers}
        self.height = CELL_HEIGHT + LABEL_HEIGHT * max((len(self.labels.get(name, ())) for name in names), default=0)
        heads = [self.text_width(name) for name, kind in names.items() if kind == "head"]
        self.head_width = max([_CELL_WIDTH, *heads])
        features = [self.text_width(name) for name, kind in names.items() if kind == "feature"]
        self.feature_width = max([_CELL_WIDTH, *features])

    def fed(self, slot: Slot) -> list[NodeId]:
        """The sources that are computed from a slot."""
        return [self.topology.sources[row] for row in self.topology.feeds[self.topology.target_index[slot]]]

    def text_width(self, name: str) -> float:
        """Least width of a box for a name and its label."""
        longest = max(map(display_width, self.labels.get(name, ())), default=0)
        return 10 + max(6.6 * len(name) + (12 if longest else 0), 5.2 * longest)

    def cell(self, name: str, kind: str, least: float) -> Cell:
        """A box, not yet placed."""
        return Cell(name, kind, self.labels.get(name, ()), 0.0, 0.0, max(least, self.text_width(name)), self.height)


def _single_block(drawn: _Drawn, node: NodeId) -> Block:
    """One box; a head's q, k and v tabs always hang at the same places."""
    slots = [slot for slot in drawn.slots if slot.node == node and len(drawn.fed(slot)) < 2]
    incoming = sum(drawn.incoming[slot] for slot in slots)
    sizes = {"head": drawn.head_width, "feature": drawn.feature_width, "mlp": _CELL_WIDTH, "error": _CELL_WIDTH}
    least = sizes.get(node.kind, min(max(76.0, 7.0 * incoming), 240.0))
    box = drawn.cell(str(node), node.kind, least)
    offset = {None: box.width / 2} | {p: box.width / 2 + (i - 1) * (TAB_WIDTH + 1) for i, p in enumerate(PORTS)}
    return Block((box,), (node,), tuple((slot, offset[slot.port]) for slot in slots))


def shared_name(slot: Slot) -> str:
    """What a key/value head that several heads share is called: `a2.kv0`, with its span where it has one."""
    return str(slot.node).replace(".h", ".kv", 1)


def _shared_block(drawn: _Drawn, slot: Slot, alive: list[NodeId]) -> Block:
    """A key/value head with its k and v tabs, and beside it the query heads that it serves."""
    own = drawn.cell(shared_name(slot), "kv", _KV_WIDTH)
    cells = [own, *(drawn.cell(str(node), "head", drawn.head_width) for node in alive)]
    tabs = [(s, own.width / 2 + (-9 if s.port == "k" else 9)) for s in drawn.slots if s in _pair(slot)]
    left = own.width
    for node, box in zip(alive, cells[1:]):
        query = Slot(node, "q")
        if drawn.incoming.get(query):
            tabs.append((query, left + box.width / 2))
        left += box.width
    return Block(tuple(cells), tuple(alive), tuple(tabs))


def _pair(slot: Slot) -> tuple[Slot, Slot]:
    """The k and the v slot of a key/value head."""
    return Slot(slot.node, "k"), Slot(slot.node, "v")


def _parallel_layers(circuit: Circuit) -> set[int | None]:
    """Layers whose MLP cannot read its own heads."""
    topology = circuit.topology
    rows = {node.layer: row for row, node in enumerate(topology.sources) if node.kind == "head"}
    mlps = ("mlp", "error")
    columns = {slot.node.layer: column for column, slot in enumerate(topology.targets) if slot.node.kind in mlps}
    return {layer for layer, row in rows.items() if layer in columns and not topology.possible[row, columns[layer]]}


def _height_of(node: NodeId, parallel: bool) -> float:
    """Sorting key of a node's row."""
    if node.layer is None:
        return float("inf") if node.kind in ("logits", "logit") else -1.0
    return 2.0 * node.layer + (0.0 if node.kind == "head" or parallel else 1.0)
