"""Heads that are what they are by construction are called so: their weights are written by hand, then measured and named."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from discovery.batches import make_batches
from discovery.component_model import ComponentModel
from discovery.head_evidence import head_evidence
from discovery.passages import Texts
from discovery.task import PromptPair
from graphs.evidence import Evidence, HeadEvidence
from graphs.node import NodeId
from labelers.head_roles import name_head
from labelers.rule_labeler import RuleLabeler

VOCABULARY, POSITIONS, HEADS = 20, 21, 3
NAMES = range(12, 16)
WIDTH = VOCABULARY * 2 + POSITIONS + 2  # this token, the token before, the position, and room to divide by the heads
TOKEN, BEFORE, PLACE = 0, VOCABULARY, 2 * VOCABULARY
SHARP = 60.0


@torch.no_grad()
def by_hand() -> ComponentModel:
    """Layer 0: previous token, duplicate token, nothing. Layer 1: induction, a mover of names, a suppressor of names."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_inner=4,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if "ln_" not in name:
            weight.zero_()
    size, eye = WIDTH // HEADS, torch.eye(WIDTH)
    weights["transformer.wte.weight"].copy_(eye[TOKEN : TOKEN + VOCABULARY])
    weights["transformer.wpe.weight"].copy_(eye[PLACE : PLACE + POSITIONS])
    weights["lm_head.weight"].copy_(eye[TOKEN : TOKEN + VOCABULARY])

    def head(layer: int, number: int, reads: list[tuple[int, int]], to: int = TOKEN, amount: float = 0.0) -> None:
        """Attends where the query holds one coordinate and the key the other; hands on the token to other coordinates."""
        query, key, value = weights[f"transformer.h.{layer}.attn.c_attn.weight"].split(WIDTH, 1)
        write = weights[f"transformer.h.{layer}.attn.c_proj.weight"]
        first = number * size
        for slot, (mine, theirs) in enumerate(reads):
            query[mine, first + slot] = SHARP
            key[theirs, first + slot] = 1.0
        for token in range(VOCABULARY):
            value[TOKEN + token, first + token] = 1.0
            write[first + token, to + token] = amount

    head(0, 0, [(PLACE + place, PLACE + place - 1) for place in range(1, POSITIONS)], to=BEFORE, amount=1.0)
    head(0, 1, [(TOKEN + token, TOKEN + token) for token in range(VOCABULARY)])
    head(1, 0, [(TOKEN + token, BEFORE + token) for token in range(VOCABULARY)], amount=1.0)
    head(1, 1, [], amount=5.0)
    head(1, 2, [], amount=-5.0)
    for number in (1, 2):  # whatever the query, the names 12 and 13 are looked at
        weights["transformer.h.1.attn.c_attn.bias"][number * size] = SHARP
        weights["transformer.h.1.attn.c_attn.weight"][TOKEN + 12 : TOKEN + 14, WIDTH + number * size] = 1.0
    return ComponentModel(model)


@pytest.fixture(scope="module")
def measured() -> dict[NodeId, HeadEvidence]:
    model = by_hand()
    pairs = [
        PromptPair((1, 12, 2, 14, other, 14, 4), (1, 12, 2, 14, other, 15, 4), ((12,),), ((14,),))
        for other in (3, 5, 6, 7)
    ]
    heads = [NodeId("head", layer, number) for layer in range(2) for number in range(HEADS)]
    corpus = [tuple(range(8)), (3, 1, 4, 5, 9, 2, 6, 8)]
    batches = make_batches(pairs, None, batch_size=3)
    return head_evidence(model, heads, Texts(None), batches=batches, corpus=corpus)


@pytest.mark.parametrize(
    ("head", "score", "least", "text"),
    [
        ("a0.h0", "previous_token", 0.95, "previous token head"),
        ("a0.h1", "duplicate_token", 0.45, "duplicate token head"),  # itself is the same token too
        ("a1.h0", "induction", 0.95, "induction head"),
        ("a1.h1", "name_mover", 0.95, "name mover head"),
        ("a1.h2", "copy_suppression", 0.95, "copy suppression head"),
    ],
)
def test_known_heads_are_named(
    measured: dict[NodeId, HeadEvidence], head: str, score: str, least: float, text: str
) -> None:
    node = NodeId.parse(head)
    assert measured[node].scores[score] >= least
    assert RuleLabeler().label(Evidence(node, "by hand", head=measured[node])).text == text


def test_a_head_that_does_nothing_has_no_role(measured: dict[NodeId, HeadEvidence]) -> None:
    named = name_head(measured[NodeId.parse("a0.h2")])
    assert named is None
    others = {"previous_token": "a0.h0", "duplicate_token": "a0.h1", "induction": "a1.h0", "name_mover": "a1.h1"}
    for score, owner in others.items():
        for node, evidence in measured.items():
            assert str(node) == owner or evidence.scores[score] < 0.3, (score, node)


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        ({"previous_token": 0.28, "text_previous_token": 0.53}, "previous token head"),
        ({"previous_token": 0.28, "text_previous_token": 0.39}, None),
        ({"duplicate_token": 0.0, "task_duplicate_token": 0.6}, "duplicate token head"),
        ({"induction": 0.35, "text_previous_token": 0.95}, "induction head"),
    ],
)
def test_what_is_measured_on_text_counts_too(scores: dict[str, float], text: str | None) -> None:
    named = name_head(HeadEvidence(scores, 1.0, 0.1, ()))
    assert (named and named.text) == text
    if named and "task" in str(scores):
        assert "on the task" in named.description
