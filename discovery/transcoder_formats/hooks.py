"""Names of places in a model, as TransformerLens and Hugging Face modules have them, and the sites that they mean."""

from __future__ import annotations

import re

from discovery.transcoder import BadTranscoder, Site

HOOKS: dict[str, Site] = {
    "hook_resid_pre": "residual-in",
    "attn.hook_z": "attention-mix",
    "hook_attn_out": "attention-out",
    "hook_resid_mid": "residual-mid",
    "hook_mlp_in": "residual-mid",
    "ln2.hook_normalized": "mlp-norm",
    "mlp.hook_in": "mlp-in",
    "mlp.hook_out": "mlp-raw",
    "hook_mlp_out": "mlp-out",
    "hook_resid_post": "residual-out",
}
"""TransformerLens' names inside `blocks.{layer}.`, and circuit-tracer's mlp.hook_in and mlp.hook_out.

ln2.hook_normalized is before the norm's weight: SAELens and circuit-tracer load models without folding it into what follows.
hook_mlp_in is a copy of the residual stream. hook_attn_out and hook_mlp_out are behind post-norms."""
NAMES: dict[Site, str] = {site: hook for hook, site in HOOKS.items() if hook != "hook_mlp_in"}
"""How a site is written in files."""

MODULES: dict[str, Site] = {
    "input": "residual-in",
    "self_attn.o_proj.input": "attention-mix",
    "post_attention_layernorm.output": "attention-out",
    "pre_feedforward_layernorm.input": "residual-mid",
    "pre_feedforward_layernorm.output": "mlp-in",
    "mlp.input": "mlp-in",
    "mlp.output": "mlp-raw",
    "post_feedforward_layernorm.output": "mlp-out",
    "output": "residual-out",
}
"""Gemma Scope 2's names inside `model.layers.{layer}.`: modules of Gemma 3."""
_HOOK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
_MODULE = re.compile(r"(?:.*\.)?layers\.(\d{1,4})\.(.+)")


def site_of_hook(name: object, where: str) -> Site:
    """The site of a hook inside a block. where: file and field, for the message."""
    if not isinstance(name, str) or name not in HOOKS:
        raise BadTranscoder(f"{where}: the hook {name!r} is not known (known: {', '.join(HOOKS)})")
    return HOOKS[name]


def place_of_hook(name: object, where: str) -> tuple[int, Site]:
    """Layer and site of a hook such as blocks.3.hook_mlp_out."""
    match = _HOOK.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        raise BadTranscoder(f"{where}: {name!r} is no place in a block, such as blocks.3.hook_mlp_out")
    return int(match[1]), site_of_hook(match[2], where)


def place_of_module(name: object, where: str) -> tuple[int, Site]:
    """Layer and site of a module's input or output, such as model.layers.3.output."""
    match = _MODULE.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[2] not in MODULES:
        raise BadTranscoder(f"{where}: {name!r} is no known place (known: layers.N. with {', '.join(MODULES)})")
    return int(match[1]), MODULES[match[2]]
