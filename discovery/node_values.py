"""Interventions with their numbers filled in: values of nodes in donor prompts, and means over reference prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.edited_features import activations, reconstruction
from discovery.intervened_run import Untouched, check_edits, untouched_pass
from discovery.intervention import BadIntervention, Edit, Prompts
from discovery.intervention_text import Intervention, Place
from discovery.sites import at_site
from discovery.transcoder import TranscoderSet


def node_values(model: ComponentModel, transcoders: TranscoderSet | None, untouched: Untouched, place: Place) -> Tensor:
    """What a node is in a recorded pass, at every position of the batch.

    [row pos] activations of a feature, [row pos feature] of all of a layer, [row pos d] of a head, all heads, MLP or error.
    """
    seen, blocks = untouched.seen, untouched.blocks
    if place.kind == "mlp":
        return seen.mlp_out[place.layer]
    if place.kind == "head":
        mix = seen.mix[place.layer]
        return mix if place.index is None else mix.unflatten(-1, (blocks[place.layer].heads, -1))[:, :, place.index]
    assert transcoders is not None
    mask = untouched.prompts.sequences.mask

    def read(layer: int) -> Tensor:
        return at_site(blocks, seen, layer, transcoders.reads).to(model.dtype)

    if place.kind == "feature":
        found = activations(transcoders.by_layer[place.layer], read(place.layer), mask)
        return found if place.index is None else found[..., place.index]
    inputs = {transcoder.layer: read(transcoder.layer) for transcoder in transcoders.writers_of(place.layer)}
    whole = at_site(blocks, seen, place.layer, transcoders.writes).to(model.dtype)
    return whole - reconstruction(transcoders, inputs, mask, place.layer)


def mean_values(
    model: ComponentModel, transcoders: TranscoderSet | None, places: Iterable[Place], references: Iterable[Prompts]
) -> dict[Place, Tensor]:
    """Mean of each node (its position aside) over all tokens of the reference prompts. Raises BadIntervention without any."""
    wanted = list(dict.fromkeys(_anywhere(place) for place in places))
    check_edits(model.blocks, transcoders, [Edit(place.kind, place.layer, place.index) for place in wanted])
    sums: dict[Place, Tensor] = {}
    tokens = 0
    for prompts in references if wanted else ():
        untouched = untouched_pass(model, prompts, patterns=False)
        real = untouched.prompts.cells(None)
        tokens += int(real.sum())
        for place in wanted:
            total = node_values(model, transcoders, untouched, place)[real].sum(0, dtype=torch.float64)
            sums[place] = total if place not in sums else sums[place] + total
    if wanted and not tokens:
        raise BadIntervention("a mean needs prompts to take it over: --task, or --mean-over with a file of prompts")
    return {place: total / tokens for place, total in sums.items()}


def _anywhere(place: Place) -> Place:
    return Place(place.kind, place.layer, place.index, None)


class Resolver:
    """Makes edits of interventions for prompts that may grow; donors are run once."""

    def __init__(
        self,
        model: ComponentModel,
        transcoders: TranscoderSet | None,
        interventions: Sequence[Intervention],
        donors: Mapping[str | None, Prompts],
        means: Mapping[Place, Tensor],
    ) -> None:
        """donors: by their text, None for the default one; of one row, or of one for each prompt. means: see `mean_values`.

        Raises BadIntervention where a donor or mean that is needed is missing.
        """
        self._model, self._transcoders, self._interventions = model, transcoders, interventions
        self._means = means
        self._donors: dict[str | None, Untouched] = {}
        for one in interventions:
            if one.act == "swap" and one.donor not in self._donors:
                if one.donor not in donors:
                    raise BadIntervention(f"--set {one.text!r}: there is no donor: write =swap:PROMPT, or give --donor")
                self._donors[one.donor] = untouched_pass(model, donors[one.donor], patterns=False)

        check_edits(
            model.blocks,
            transcoders,
            [Edit(place.kind, place.layer, place.index) for one in interventions for place in one.places],
        )

    def edits(self, prompts: Prompts) -> list[Edit]:
        """The edits of one batch. Raises BadIntervention for a position that a prompt or donor does not have."""
        prompts = prompts.to(self._model.device)
        found: list[Edit] = []
        for one in self._interventions:
            try:
                found += [self._edit(one, place, prompts) for place in one.places]
            except BadIntervention as error:
                raise BadIntervention(f"--set {one.text!r}: {error}") from None
        return found

    def _edit(self, one: Intervention, place: Place, prompts: Prompts) -> Edit:
        node = (place.kind, place.layer, place.index, place.position)
        if one.act == "mean":
            return Edit(*node, "set", self._means[_anywhere(place)], prompts.cells(place.position))
        if one.act != "swap":
            return Edit(*node, one.act, one.amount, prompts.cells(place.position))
        donor = self._donors[one.donor]
        values = node_values(self._model, self._transcoders, donor, place)
        columns, valid = _donor_columns(prompts, donor.prompts, place.position, one.donor_position)
        rows = torch.arange(len(columns), device=columns.device)[:, None] if len(values) > 1 else 0
        return Edit(*node, "set", values[rows, columns], prompts.cells(place.position) & valid)


def _donor_columns(
    prompts: Prompts, donor: Prompts, position: int | None, donor_position: int | None
) -> tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]:
    """For each cell of the prompts the donor's column, and whether there is one. A donor of one row serves all."""
    shape, device = prompts.sequences.mask.shape, donor.lengths.device
    if len(donor.lengths) not in (1, shape[0]):
        raise BadIntervention(f"{len(donor.lengths)} donor prompts cannot serve {shape[0]} prompts")
    if position is not None:
        column = donor.columns(position if donor_position is None else donor_position)
        return column[:, None].expand(shape), torch.ones(shape, dtype=torch.bool, device=device)
    places = torch.arange(shape[1], device=device) - prompts.starts[:, None]
    longest = torch.minimum(donor.lengths, prompts.lengths)[:, None]
    valid = (places >= 0) & (places < longest)
    return (donor.starts[:, None] + places).where(valid, 0), valid
