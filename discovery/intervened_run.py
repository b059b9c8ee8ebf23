"""One forward of the untouched model under hooks that apply interventions, with parts of it frozen as they are without them.

Freezing: `attention` holds the attention patterns of the untouched pass; `all` holds every norm's denominator and every
MLP's output too (a skip connection stays live), which makes the run linear: the local replacement model of the
conventions, section 6. A feature's new activation changes what its dictionary writes by (new - old) * decoder; the error
stays. Old is the run's own activation, or the untouched pass's where the MLP is frozen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from discovery.blocks import Block, find_blocks
from discovery.component_model import ComponentModel
from discovery.edited_features import DictionaryEdits, activations
from discovery.intervention import BadIntervention, DirectionEdit, Edit, Prompts, prompts_of
from discovery.recording import Activations, record_pass, session
from discovery.transcoder import BadTranscoder, TranscoderSet
from discovery.visited_forward import Freeze, visiting

Reads = tuple[Int[Tensor, " read"], Int[Tensor, " read"]]


@dataclass(frozen=True, eq=False)
class Untouched:
    """The model's own pass on some prompts: what is frozen, and the values that interventions take from elsewhere."""

    blocks: tuple[Block, ...]
    """The model's blocks, key/value heads as the model has them."""
    prompts: Prompts
    """The prompts, on the model's device."""
    seen: Activations
    """What hooks saw; one row for each prompt."""


@dataclass(eq=False)
class Outcome:
    """What an intervened pass gave."""

    logits: Float[Tensor, "read vocab"]
    """The model's logits at the reads (after its final soft cap, where it has one)."""
    uncapped: Float[Tensor, "read vocab"]
    """The same before the soft cap: what attribution graphs explain."""
    transcoders: TranscoderSet | None
    """The dictionaries that were given."""
    mask: Tensor
    """True at real tokens [row pos]."""
    inputs: dict[int, Float[Tensor, "row pos d_in"]] = field(default_factory=dict)
    """What each layer's dictionary reads in this run."""
    streams: list[Float[Tensor, "row pos d_model"]] = field(default_factory=list)
    """Where asked for: the residual stream as it enters each layer, and before the final norm."""

    def preactivations(self, layer: int) -> Float[Tensor, "row pos feature"]:
        """What a layer's features are in this run before the nonlinearity."""
        assert self.transcoders is not None
        return self.transcoders.by_layer[layer].preactivations(self.inputs[layer])

    def activations(self, layer: int) -> Float[Tensor, "row pos feature"]:
        """What a layer's features are in this run by themselves: before an edit of their own."""
        assert self.transcoders is not None
        return activations(self.transcoders.by_layer[layer], self.inputs[layer], self.mask)


def untouched_pass(model: ComponentModel, prompts: Prompts, patterns: bool = True) -> Untouched:
    """Record the untouched model's pass. patterns: with attention patterns (needed to freeze; eager attention is used)."""
    blocks, moved = find_blocks(model.hf, model.arch, False), prompts.to(model.device)
    with session(model.hf, model.arch, blocks), torch.no_grad():
        seen = record_pass(model.hf, model.arch, blocks, moved.sequences, patterns=patterns)
    return Untouched(blocks, moved, seen)


def intervened_pass(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    tokens: Int[Tensor, " pos"] | Prompts,
    edits: Sequence[Edit] = (),
    *,
    directions: Sequence[DirectionEdit] = (),
    freeze: Freeze = "none",
    constrained: Collection[int] = (),
    untouched: Untouched | None = None,
    reads: Reads | None = None,
    streams: bool = False,
) -> Outcome:
    """Run the model on one prompt (or a batch) under interventions, without gradients.

    constrained: layers whose MLP output is held as without interventions (and only changed by edits of their own), as
    circuit-tracer's constrained layers. untouched: the recorded pass, to be used again; of one row it serves all rows.
    reads: (rows, columns) where logits are wanted; by default the last column of every row. Raises BadIntervention.
    """
    prompts = (tokens if isinstance(tokens, Prompts) else prompts_of([tokens.tolist()])).to(model.device)
    if (freeze != "none" or constrained) and untouched is None:
        untouched = untouched_pass(model, prompts)
    run = _Run(model, transcoders, prompts, edits, directions, freeze, frozenset(constrained), untouched, streams)
    return run.forward(reads)


class _Run:
    """State of one pass. `at` is called with every value that passes one of the sites, and gives what goes on."""

    def __init__(
        self,
        model: ComponentModel,
        transcoders: TranscoderSet | None,
        prompts: Prompts,
        edits: Sequence[Edit],
        directions: Sequence[DirectionEdit],
        freeze: Freeze,
        constrained: frozenset[int],
        untouched: Untouched | None,
        streams: bool,
    ) -> None:
        self.model, self.prompts, self.edits, self.directions = model, prompts, edits, directions
        self.freeze: Freeze = freeze
        self.blocks = find_blocks(model.hf, model.arch, False) if untouched is None else untouched.blocks
        self.seen = None if untouched is None else untouched.seen
        self.still = frozenset(range(len(self.blocks))) if freeze == "all" else constrained
        check_edits(self.blocks, transcoders, edits)
        self.dictionaries = None
        if transcoders is not None:
            self.dictionaries = DictionaryEdits(
                self.blocks, transcoders, prompts, edits, self.seen, self.still, freeze == "all", model.dtype
            )
        self.keep_streams = streams
        self.streams: list[Tensor] = []
        self.uncapped: Tensor | None = None

    def forward(self, reads: Reads | None) -> Outcome:
        """The pass."""
        own, width = self.prompts.sequences, self.prompts.sequences.tokens.shape[1]
        rows = torch.arange(len(own.tokens), device=own.tokens.device)
        read_rows, read_columns = (rows, torch.full_like(rows, width - 1)) if reads is None else reads
        first = int(read_columns.min())
        with session(self.model.hf, self.model.arch, self.blocks), torch.no_grad(), self._visited():
            logits: Tensor = self.model.hf(
                input_ids=own.tokens,
                attention_mask=own.mask.long(),
                position_ids=own.positions,
                use_cache=False,
                logits_to_keep=width - first,
            ).logits
        assert self.uncapped is not None
        place = (read_rows.to(rows.device), (read_columns - first).to(rows.device))
        outcome = Outcome(logits[place], self.uncapped[place], None, own.mask, {}, self.streams)
        if self.dictionaries is not None:
            outcome.transcoders, outcome.inputs = self.dictionaries.transcoders, self.dictionaries.inputs
        return outcome

    def at(self, site: str, layer: int, value: Tensor) -> Tensor:
        """What a value at a site becomes: frozen, then edited, then with what dictionaries and directions add."""
        value = self._edited(site, layer, value)
        value = self._directed(site, layer, value, adding=True)
        value = self._directed(site, layer, value, adding=False)
        if self.dictionaries is not None:
            changed = self.dictionaries.at(site, layer, value)
            value = value if changed is value else self._directed(site, layer, changed, adding=False)
        if site == "residual-in":
            if self.dictionaries is not None:
                self.dictionaries.stream = value
            if self.keep_streams:
                self.streams.append(value)
        return value

    def _edited(self, site: str, layer: int, value: Tensor) -> Tensor:
        """Heads and MLPs."""
        kind = {"attention-mix": "head", "mlp-out": "mlp"}.get(site)
        for edit in self.edits:
            if edit.kind != kind or edit.layer != layer:
                continue
            places = edit.places(self.prompts)
            if kind == "mlp" or edit.index is None:
                value = edit.changed(value, places)
                continue
            heads = value.unflatten(-1, (self.blocks[layer].heads, -1)).clone()
            heads[:, :, edit.index] = edit.changed(heads[:, :, edit.index], places)
            value = heads.flatten(-2)
        return value

    def _directed(self, site: str, layer: int, value: Tensor, adding: bool) -> Tensor:
        """Directions: added where a stream enters a layer; projected out there, or of everything that is written."""
        for direction in self.directions:
            if (direction.add is not None) != adding:
                continue
            if site == "residual-in":
                everywhere = direction.streams is None and (adding or layer == 0)
                meant = everywhere or (direction.streams is not None and layer in direction.streams)
            else:
                meant = direction.streams is None and not adding and site in ("attention-out", "mlp-out")
            if meant:
                value = direction.changed(value, self.prompts.cells(direction.position))
        return value

    @contextlib.contextmanager
    def _visited(self) -> Iterator[None]:
        def unembedded(module: nn.Module, args: tuple, out: Tensor) -> None:
            self.uncapped = out

        head = self.model.hf.get_submodule(self.model.arch.unembedding)
        with visiting(self.model, self.blocks, self.at, self.freeze, self.still, self.seen):
            handle = head.register_forward_hook(unembedded)
            try:
                yield
            finally:
                handle.remove()


def check_edits(blocks: Sequence[Block], transcoders: TranscoderSet | None, edits: Sequence[Edit]) -> None:
    """Raise BadIntervention for an edit of something that does not exist, BadTranscoder for dictionaries beyond the model."""
    if transcoders is not None and max(transcoders.biases) >= len(blocks):
        raise BadTranscoder(
            f"{transcoders.name or 'transcoders'}: they write layer {max(transcoders.biases)}, but the model has {len(blocks)}"
        )
    for edit in edits:
        name = f"{edit.kind} {'*' if edit.index is None else edit.index} of layer {edit.layer}"
        if not 0 <= edit.layer < len(blocks):
            raise BadIntervention(f"{name}: the model has layers 0 to {len(blocks) - 1}")
        count: int | None = None
        if edit.kind == "head":
            count = blocks[edit.layer].heads
        elif edit.kind != "mlp":
            if transcoders is None:
                raise BadIntervention(f"{name}: features and errors need transcoders")
            own = transcoders.by_layer.get(edit.layer)
            if edit.layer not in transcoders.biases if edit.kind == "error" else own is None:
                raise BadIntervention(f"{name}: the transcoders have none for this layer")
            count = own.features if own is not None and edit.kind == "feature" else None
        if edit.index is not None and (count is None or not 0 <= edit.index < count):
            raise BadIntervention(f"{name}: there are {count or 'no numbered ones'}")
