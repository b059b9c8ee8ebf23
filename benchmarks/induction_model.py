"""A 4-layer GPT-2 that is trained, in a minute or two, to go on with a repeated list; and pairs of prompts that ask for it."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from discovery.ablation import COUNTERFACTUAL
from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.metrics import METRICS
from discovery.task import PromptPair
from discovery.workload import Workload

VOCABULARY = 64
_FIRST = 3
"""Token ids below are left to special tokens."""
_LENGTH = 24


def train(steps: int = 400, rows: int = 64) -> ComponentModel:
    """Layers 4, d_model 128, heads 4; random lists of 4 to 12 tokens over and over, loss where the next token is known."""
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(
        GPT2Config(
            n_layer=4,
            n_head=4,
            n_embd=128,
            vocab_size=VOCABULARY,
            n_positions=64,
            bos_token_id=0,
            eos_token_id=0,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
        )
    ).train()
    matrices = [p for name, p in hf.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in hf.named_parameters() if not (".h." in name and p.ndim == 2)]
    optimizers = (
        torch.optim.Muon(matrices, lr=0.03, momentum=0.95),
        torch.optim.AdamW(rest, lr=4e-3, betas=(0.9, 0.98)),
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        lists = torch.randint(_FIRST, VOCABULARY, (rows, 12), generator=generator)
        period = torch.randint(4, 13, (rows, 1), generator=generator)
        tokens = lists.gather(1, torch.arange(_LENGTH)[None] % period)
        logits = hf(tokens, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        known = (torch.arange(1, _LENGTH)[None] > period).flatten()
        losses[known].mean().backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return ComponentModel(hf.eval().requires_grad_(False))


def pairs(count: int, batch_size: int = 8) -> Workload:
    """Prompts of 16 tokens: a list of 10 and its first 6 again; the corrupt one has another seventh."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(count):
        *listed, other = (torch.randperm(VOCABULARY - _FIRST, generator=generator)[:11] + _FIRST).tolist()
        changed = [*listed[:6], other, *listed[7:]]
        again = listed[:6]
        made.append(PromptPair((*listed, *again), (*changed, *again), ((listed[6],),), ((other,),)))
    return Workload(tuple(make_batches(made, None, batch_size=batch_size)), METRICS["logit-diff"], COUNTERFACTUAL)


def knows(model: ComponentModel, work: Workload) -> float:
    """The share of pairs whose clean prompt gets the right answer."""
    right = [
        model.hf(input_ids=batch.clean, use_cache=False).logits[:, -1].argmax(-1)
        == batch.clean.gather(1, torch.full((len(batch), 1), 6))[:, 0]
        for batch in work.batches
    ]
    return float(torch.cat(right).float().mean())
