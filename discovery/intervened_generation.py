"""Greedy generation under interventions, every new token from a whole intervened pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from discovery.component_model import ComponentModel
from discovery.intervened_run import intervened_pass
from discovery.intervention import DirectionEdit, Prompts
from discovery.node_values import Resolver
from discovery.transcoder import TranscoderSet
from discovery.visited_forward import Freeze


def generate(
    model: ComponentModel,
    transcoders: TranscoderSet | None,
    prompts: Prompts,
    resolver: Resolver | None,
    directions: Sequence[DirectionEdit] = (),
    *,
    freeze: Freeze = "none",
    steps: int = 20,
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token, up to an end-of-sequence token.

    Interventions apply anew at every step: positions are the prompt's, an intervention at all tokens takes in the new ones.
    What is frozen is frozen to the untouched model's pass over the same tokens, the new ones included.
    """
    ends = _end_tokens(model)
    grown: list[list[int]] = [[] for _ in prompts.lengths]
    running = torch.ones(len(grown), dtype=torch.bool)
    for _ in tqdm(range(steps), desc="generate", unit="token", delay=1, leave=False):
        edits = [] if resolver is None else resolver.edits(prompts)
        outcome = intervened_pass(model, transcoders, prompts, edits, directions=directions, freeze=freeze)
        tokens = outcome.logits.argmax(-1).cpu()
        running &= torch.tensor([int(token) not in ends for token in tokens])
        for row in running.nonzero().flatten().tolist():
            grown[row].append(int(tokens[row]))
        if not running.any():
            break
        prompts = _longer(prompts, tokens)
    return grown


def _longer(prompts: Prompts, tokens: Tensor) -> Prompts:
    own = prompts.sequences
    last = tokens.to(own.tokens)[:, None]
    mask = torch.cat([own.mask, torch.ones_like(last, dtype=torch.bool)], 1)
    positions = torch.cat([own.positions, own.positions[:, -1:] + 1], 1)
    sequences = replace(own, tokens=torch.cat([own.tokens, last], 1), mask=mask, positions=positions)
    return replace(prompts, sequences=sequences)


def _end_tokens(model: ComponentModel) -> set[int]:
    found: set[int] = set()
    for config in (model.hf.generation_config, model.config):
        ends = getattr(config, "eos_token_id", None)
        found |= set(ends) if isinstance(ends, list | tuple) else set() if ends is None else {int(ends)}
    return found
