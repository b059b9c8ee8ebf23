"""What directions of the residual stream do to the logits by the direct path: vocabulary projections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from discovery.component_model import ComponentModel
from discovery.transcoder import TranscoderSet
from graphs.evidence import TokenEffect

_BLOCK_VALUES = 16_000_000  # logits that are held at a time
_DIRECT = ("residual-in", "residual-mid", "residual-out", "attention-out", "mlp-out")


def unembedding(model: ComponentModel) -> Float[Tensor, "vocab d_model"]:
    """The unembedding's rows, as the model stores them."""
    return model.hf.get_submodule(model.arch.unembedding).weight.detach()  # type: ignore[union-attr,return-value]


def readout(model: ComponentModel, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """Rows that give logits, less the mean logit over the vocabulary, of a residual stream that was divided by the final
    norm's denominator: the norm's weight and centring folded in."""
    table, norm = unembedding(model), model.final_norm
    mean = table.mean(0, dtype=torch.float64 if table.device.type != "mps" else None).to(model.dtype)
    rows = table[tokens.to(table.device)].to(model.dtype) - mean
    return norm.centre(rows * norm.weight.detach().to(rows))


def write_directions(
    model: ComponentModel,
    transcoders: TranscoderSet,
    layer: int,
    features: Sequence[int],
    targets: Collection[int] | None = None,
) -> Float[Tensor, "feature d_model"] | None:
    """What features add to the residual stream per unit, summed over the layers that they write (or those of `targets`), the
    weight of a norm behind the MLP or attention folded in (not its denominator); None where they write within a sublayer."""
    total: Tensor | None = None
    for target, decoder in transcoders.by_layer[layer].decoders.items():
        if targets is not None and target not in targets:
            continue
        block, rows = model.blocks[target], decoder[list(features)].to(model.device, model.dtype)
        if transcoders.writes == "mlp-raw":
            rows = rows if block.post_mlp_norm is None else rows * block.post_mlp_norm.weight.detach().to(rows)
        elif transcoders.writes == "attention-mix":
            rows = rows @ block.output_weight().detach().to(rows).flatten(0, 1)
            rows = (
                rows if block.post_attention_norm is None else rows * block.post_attention_norm.weight.detach().to(rows)
            )
        elif transcoders.writes not in _DIRECT:
            return None
        total = rows if total is None else total + rows
    return total


@torch.no_grad()
def project(
    model: ComponentModel, directions: Float[Tensor, "row d_model"], texts: Callable[[int], str], count: int = 10
) -> list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]]:
    """For each direction the tokens whose logits it raises most, and those that it lowers most, less the mean logit."""
    table, norm = unembedding(model), model.final_norm
    vocabulary = len(table)
    # (weight * x) through the table is x through (weight * row); a LayerNorm first takes the direction's own mean away.
    folded = norm.centre(directions.to(model.dtype)) * norm.weight.detach().to(directions.device, model.dtype)
    found: list[tuple[tuple[TokenEffect, ...], tuple[TokenEffect, ...]]] = []
    for some in folded.split(max(1, _BLOCK_VALUES // vocabulary)):
        logits = some.to(table.device) @ table.to(some.dtype).t()
        logits = logits - logits.mean(1, keepdim=True)
        sides = []
        for largest in (True, False):
            values, tokens = logits.topk(min(count, vocabulary), 1, largest=largest)
            sides.append((values.tolist(), tokens.tolist()))
        for row in range(len(some)):
            up, down = (
                tuple(TokenEffect(texts(token), value) for value, token in zip(values[row], tokens[row]))
                for values, tokens in sides
            )
            found.append((up, down))
    return found
