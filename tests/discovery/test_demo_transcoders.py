"""The embedded model's transcoders: small, true to the model on held-out text, and its first layer carries the country."""

from __future__ import annotations

import itertools

import pytest
import torch

from discovery.component_model import ComponentModel
from discovery.demo import model_directory, transcoder_directory
from discovery.demo.corpus import documents
from discovery.demo.train_transcoders import source, windows
from discovery.loading import load_model
from discovery.reconstruction import measure_fit
from discovery.tasks.table import generate_pairs
from discovery.transcoder import TranscoderSet
from discovery.transcoder_source import load_transcoders

LARGEST = 6 * 10**6
"""Bytes of the whole folder."""


@pytest.fixture(scope="module")
def model() -> ComponentModel:
    return load_model(model_directory(), device="cpu")


@pytest.fixture(scope="module")
def transcoders() -> TranscoderSet:
    return load_transcoders(transcoder_directory(), dtype="float32")


def test_they_are_small_and_hold_no_pickle() -> None:
    files = [path for path in transcoder_directory().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert {path.suffix for path in files} == {".json", ".safetensors", ".yaml"}


def test_every_layer_is_rebuilt_on_held_out_text(model: ComponentModel, transcoders: TranscoderSet) -> None:
    texts = list(itertools.islice(documents(seed=99), 300))
    fits = measure_fit(transcoders, source(model), windows(model, texts))
    assert [fit.layer for fit in fits] == [0, 1, 2, 3]
    assert all(fit.fvu <= 0.10 < fit.pca_fvu for fit in fits)
    assert all(fit.l0 <= 16 for fit in fits)


def test_the_first_layers_features_carry_the_country(model: ComponentModel, transcoders: TranscoderSet) -> None:
    """Features at the city set to the other held-out prompt's: the answer is the other capital. The error stays."""
    first, tokenizer = transcoders.by_layer[0], model.tokenizer
    assert tokenizer is not None
    pairs = generate_pairs("two-hop", 40, 5, "held-out", order="relation_last")
    flipped = 0
    for pair in pairs:
        tokens = torch.tensor([tokenizer(text)["input_ids"] for text in (pair.clean, pair.corrupt)])
        city = int((tokens[0] != tokens[1]).int().argmax())

        def exchange(module: torch.nn.Module, args: tuple, out: torch.Tensor, city: int = city) -> torch.Tensor:
            active = first.encode(args[0][:, city])
            out = out.clone()
            out[0, city] += (active[1] - active[0]) @ first.decoders[0]
            return out

        handle = model.blocks[0].mlp.register_forward_hook(exchange)
        with torch.no_grad():
            answer = int(model.hf(tokens).logits[0, -1].argmax())
        handle.remove()
        flipped += answer == tokenizer(pair.wrong_answers[0], add_special_tokens=False)["input_ids"][0]
    assert flipped / len(pairs) >= 0.85
