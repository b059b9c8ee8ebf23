"""The inside of an MLP, found by its shape: what reads the residual stream, the activation function, what writes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from discovery.architecture import UnsupportedModel
from discovery.blocks import Block, linear_weight


@dataclass(frozen=True, eq=False)
class MlpParts:
    """The modules of one MLP; its neurons are the entries of what `down` reads."""

    activation: nn.Module
    """The activation function."""
    down: nn.Module
    """The projection back to the residual stream."""
    gated: bool
    """Whether what `down` reads is a product of an activated and a plain projection."""
    neurons: int
    """Width of what `down` reads."""


def mlp_parts(block: Block) -> MlpParts:
    """The parts of a block's MLP. Raises UnsupportedModel naming the layer where the MLP has another shape."""
    leaves = [module for module in block.mlp.modules() if not any(True for _ in module.children())]
    linear = [module for module in leaves if isinstance(getattr(module, "weight", None), Tensor)]
    plain = [module for module in leaves if not any(True for _ in module.parameters(recurse=False))]
    functions = [module for module in plain if not isinstance(module, nn.Dropout | nn.Identity)]
    widths = [tuple(linear_weight(module).shape) for module in linear if linear_weight(module).ndim == 2]
    # Projections are registered in the order in which they are used: the last one writes.
    if len(functions) == 1 and len(widths) == len(linear) >= 2:
        d_model, neurons = widths[-1]
        read = sum(out for out, width in widths[:-1] if width == d_model)
        if all(width == d_model for _, width in widths[:-1]) and read in (neurons, 2 * neurons):
            return MlpParts(functions[0], linear[-1], read == 2 * neurons, neurons)
    raise UnsupportedModel(
        f"layer {block.index}: its MLP ({type(block.mlp).__name__}) is not one or two projections, an activation function "
        "and a projection back, which relevance rules and neurons need"
    )
