"""The embedded model: small, ordinary, loaded without a network, and right on held-out combinations."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from discovery.demo import CLAIMED_TASKS, model_directory
from discovery.demo.accuracy import task_accuracy
from discovery.demo.corpus import documents, leak
from discovery.demo.interchange import city_pairs, interchange_loss
from discovery.demo.train import Recipe, train
from discovery.demo.vocabulary import build_tokenizer
from discovery.tasks.induction import OPENING, WORDS, may_follow
from discovery.tasks.table import generate_pairs

BAR = 0.98
LARGEST = 6 * 10**6
"""Bytes of the whole folder."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_directory(), local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_directory(), local_files_only=True, dtype=torch.float32).eval()


def test_the_checkpoint_is_small_and_holds_no_pickle() -> None:
    files = [path for path in model_directory().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LARGEST
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


@pytest.mark.parametrize("task", CLAIMED_TASKS)
def test_claimed_tasks_hold_on_held_out_combinations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str
) -> None:
    """Top-1 over the whole vocabulary, clean and corrupt prompts alike; on other pairs than the recorded figures."""
    accuracy = task_accuracy(model, tokenizer, task, "held-out", 300, seed=11)
    assert accuracy.clean >= BAR
    assert accuracy.corrupt >= BAR


def test_the_record_claims_what_the_bar_asks_for() -> None:
    record = json.loads((model_directory() / "training.json").read_text(encoding="utf-8"))
    assert record["held_out_accuracy"].keys() == set(CLAIMED_TASKS)
    assert all(share >= BAR for task in record["held_out_accuracy"].values() for share in task.values())
    assert record["seconds"]["wall"] < 40 * 60
    assert record["recipe"].keys() == set(Recipe.__dataclass_fields__)


def test_an_untrained_model_does_not_pass(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """The bar measures what was learnt."""
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    assert all(task_accuracy(untrained, tokenizer, task, "held-out", 30).clean < 0.5 for task in CLAIMED_TASKS)


def test_the_shipped_tokenizer_is_the_one_the_script_builds(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()


@pytest.mark.parametrize("task", CLAIMED_TASKS)
def test_text_round_trips(tokenizer: PreTrainedTokenizerBase, task: str) -> None:
    for pair in generate_pairs(task, 20, 2, "held-out"):
        text = pair.clean + pair.answers[0]
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_unknown_words_become_unk_and_change_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    known, unknown = (tokenizer(f"The {word} is red.")["input_ids"] for word in ("toy", "zyzzyva"))
    assert len(known) == len(unknown)
    assert [a for a, b in zip(known, unknown, strict=True) if a != b] == [tokenizer.convert_tokens_to_ids("\u2581toy")]
    assert tokenizer.unk_token_id in unknown
    assert known[0] == tokenizer.bos_token_id


def test_no_document_brings_held_out_combinations_together() -> None:
    seen = list(itertools.islice(documents(seed=4), 3000))
    assert all(leak(text) is None for text in seen)
    text = " ".join(seen)
    for task in ("ioi", "greater-than", "gendered-pronoun", "subject-verb-agreement", "country-capital", "two-hop"):
        assert not any(f"{pair.clean}{pair.answers[0]}" in text for pair in generate_pairs(task, 300, 0, "held-out"))
    for listed in (part.split(".")[0].split() for part in text.split(OPENING)[1:]):
        assert all(may_follow(a, b, "train") for a, b in itertools.pairwise(listed) if {a, b} <= set(WORDS))


def test_leaks_are_found() -> None:
    for task in ("ioi", "gendered-pronoun"):
        assert all(leak(f"Well: {pair.clean}") for pair in generate_pairs(task, 50, 0, "held-out"))
    assert all(leak(f"{pair.clean}{pair.answers[0]}") for pair in generate_pairs("two-hop", 50, 0, "held-out"))


def test_the_first_mlp_says_which_country_a_city_is_in(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Its output at the city, from another prompt of the same wording: the answer is the other capital. Held-out cities."""
    pairs = generate_pairs("two-hop", 60, 3, "held-out", order="relation_last")
    for layer, least, most in ((0, 0.95, 1.0), (1, 0.0, 0.05)):
        flipped = 0
        for pair in pairs:
            tokens = torch.tensor([tokenizer(text)["input_ids"] for text in (pair.clean, pair.corrupt)])
            city = int((tokens[0] != tokens[1]).int().argmax())

            def exchange(module: torch.nn.Module, args: tuple, out: torch.Tensor, city: int = city) -> torch.Tensor:
                out = out.clone()
                out[0, city] = out[1, city]
                return out

            handle = model.model.layers[layer].mlp.register_forward_hook(exchange)
            with torch.no_grad():
                answer = int(model(tokens).logits[0, -1].argmax())
            handle.remove()
            flipped += answer == tokenizer(pair.wrong_answers[0], add_special_tokens=False)["input_ids"][0]
        assert least <= flipped / len(pairs) <= most


def test_the_interchange_loss_is_that_of_the_other_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    pairs = next(city_pairs(0, 8))
    assert all(leak(text) is None for pair in pairs for text in pair)
    with torch.no_grad():
        known = interchange_loss(model, tokenizer, pairs)  # type: ignore[arg-type]
        untrained = interchange_loss(type(model)(model.config).eval(), tokenizer, pairs)  # type: ignore[arg-type]
    assert float(known) < 0.5 < float(untrained)


@pytest.mark.slow
def test_training_is_deterministic_and_lowers_the_loss(tmp_path: Path) -> None:
    recipe = Recipe(steps=40, batch_documents=16, warmup_steps=10)
    (first, _, losses), (second, _, again) = train(recipe), train(recipe)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    other = train(Recipe(steps=1, seed=1, batch_documents=16))[2]
    assert other[0] != losses[0]
