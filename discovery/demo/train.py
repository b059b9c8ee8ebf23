"""Train the embedded model, or measure the one that is shipped: `python -m discovery.demo.train [--evaluate]`."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from discovery.demo import CLAIMED_TASKS, model_directory
from discovery.demo.accuracy import task_accuracy
from discovery.demo.corpus import documents
from discovery.demo.interchange import city_pairs, interchange_loss
from discovery.demo.vocabulary import SPECIAL, build_tokenizer, freely_chosen
from discovery.tasks.generator import Split

EVALUATION_PAIRS = 500
"""Pairs measured for each task."""
LONGEST = 128
"""Most tokens of a document, and the positions that the model's configuration states."""


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on."""

    seed: int = 0
    """Of the weights and of the corpus."""
    steps: int = 3600
    """Batches."""
    list_steps: int = 400
    """Steps at the start that see word lists alone: induction heads come first, for they take longest to form."""
    copying_steps: int = 400
    """Steps after them that see copying documents alone."""
    batch_documents: int = 96
    """Documents in each batch."""
    matrix_rate: float = 0.03
    """Muon's learning rate for the layers' matrices."""
    vector_rate: float = 4e-3
    """AdamW's learning rate for embeddings and norms."""
    warmup_steps: int = 50
    """Both rates rise linearly, then fall to zero along a cosine."""
    weight_decay: float = 0.1
    """Of the matrices and embeddings."""
    free_weight: float = 0.1
    """Weight in the loss of words that nothing foretells: see `loss_weights`."""
    interchange_steps: int = 600
    """Steps of the last phase, which puts the country of a city into the first MLP (`discovery.demo.interchange`)."""
    interchange_rate: float = 0.3
    """Peak of the learning rates in the last phase, as a share of those above."""
    interchange_pairs: int = 32
    """Pairs of sentences in each of its batches, beside the documents."""
    interchange_weight: float = 0.5
    """Weight of their loss."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 6
    """Attention heads of each layer."""
    d_model: int = 96
    """Width of the residual stream."""
    d_mlp: int = 256
    """Width of the gated MLPs."""


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised Llama of the recipe's shape (seeds torch's generator)."""
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            max_position_embeddings=LONGEST,
            # Short texts: more of the few rotary frequencies tell neighbours apart, which previous-token heads need.
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            tie_word_embeddings=True,
            initializer_range=0.05,
            pad_token_id=SPECIAL.index("<pad>"),
            bos_token_id=SPECIAL.index("<bos>"),
            eos_token_id=SPECIAL.index("<eos>"),
        )
    )
    with torch.no_grad():  # at first every layer adds little to the embeddings
        model.model.embed_tokens.weight.normal_(0, 0.1)
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(0.2)
    return model


def loss_weights(row: list[int], free: frozenset[int], free_weight: float) -> list[float]:
    """Weight of each token of a document as a target.

    Names and list words are drawn at random, so their first mention is noise, and it teaches which words never meet
    (the held-out combinations); it counts little. All else, second mentions among it, counts fully.
    """
    seen: set[int] = set()
    weights = []
    for token in row:
        weights.append(free_weight if token in free and token not in seen else 1.0)
        seen.add(token)
    return weights


def batches(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[Int[Tensor, "batch pos"], Float[Tensor, "batch pos"]]]:
    """Endless batches: token ids of documents, ended by `<eos>`, padded on the right, and the tokens' loss weights."""
    source = documents(
        recipe.seed + 1, recipe.list_steps * recipe.batch_documents, recipe.copying_steps * recipe.batch_documents
    )
    free = freely_chosen(tokenizer)
    pad, end = SPECIAL.index("<pad>"), SPECIAL.index("<eos>")
    group = 16  # documents of similar length go together, which saves half of the padding
    order = torch.Generator().manual_seed(recipe.seed)
    while True:
        texts = list(itertools.islice(source, recipe.batch_documents * group))
        rows = sorted(([*ids[: LONGEST - 1], end] for ids in tokenizer(texts)["input_ids"]), key=len)
        for i in torch.randperm(group, generator=order).tolist():
            some = rows[i * recipe.batch_documents : (i + 1) * recipe.batch_documents]
            width = len(some[-1])
            padded = [row + [pad] * (width - len(row)) for row in some]
            weights = [loss_weights(row, free, recipe.free_weight) + [0.0] * (width - len(row)) for row in some]
            yield torch.tensor(padded), torch.tensor(weights)


def weighted_loss(
    model: LlamaForCausalLM, tokens: Int[Tensor, "batch pos"], weights: Float[Tensor, "batch pos"]
) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the next token, in nats."""
    # Padding is on the right, where causal attention does not look, so no mask is needed.
    logits = model(tokens, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    counted = weights[:, 1:].flatten()
    return (losses * counted).sum() / counted.sum()


def share_of_peak_rate(step: int, steps: int, warmup: int) -> float:
    """Learning rate of a step as a share of its peak."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def build_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) for the layers' matrices, where it forms copying heads in fewer steps; else AdamW."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    embeddings = list(model.model.embed_tokens.parameters())
    return (
        torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=recipe.vector_rate,
            betas=(0.9, 0.98),
        ),
    )


def train(recipe: Recipe) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """A trained model in float32, its tokenizer, and the loss of every step (weighted nats per token)."""
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer).train()
    source = batches(recipe, tokenizer)
    losses = _descend(model, recipe, recipe.steps, 1.0, (weighted_loss(model, *batch) for batch in source), "training")
    return model.eval(), tokenizer, losses


def refine(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> list[float]:
    """The last phase, in place: more documents, and sentences about two cities with the first MLP's outputs exchanged.

    Gives the loss of every step.
    """
    model.train()
    documents_only = replace(recipe, seed=recipe.seed + 1, list_steps=0, copying_steps=0)
    source = zip(batches(documents_only, tokenizer), city_pairs(recipe.seed, recipe.interchange_pairs))
    both = (
        weighted_loss(model, *batch) + recipe.interchange_weight * interchange_loss(model, tokenizer, pairs)
        for batch, pairs in source
    )
    losses = _descend(model, recipe, recipe.interchange_steps, recipe.interchange_rate, both, "interchange")
    model.eval()
    return losses


def _descend(
    model: LlamaForCausalLM, recipe: Recipe, steps: int, share: float, losses: Iterator[Tensor], name: str
) -> list[float]:
    """One optimiser step for each loss; share: of the recipe's rates. Gives the losses."""
    optimizers = build_optimizers(model, recipe)
    peaks = [[share * group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    seen: list[float] = []
    progress = tqdm(itertools.islice(losses, steps), total=steps, desc=name)
    for step, loss in enumerate(progress):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * share_of_peak_rate(step, steps, recipe.warmup_steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen.append(loss.item())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{sum(seen[-50:]) / len(seen[-50:]):.3f}")
    return seen


def accuracies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, count: int
) -> dict[str, dict[str, float]]:
    """Accuracy on every claimed task, as plain data."""
    return {task: asdict(task_accuracy(model, tokenizer, task, split, count)) for task in CLAIMED_TASKS}


def train_and_save(recipe: Recipe, directory: Path, start: Path | None = None) -> dict[str, object]:
    """Train, measure, and write checkpoint, tokenizer and `training.json`; returns what the latter holds.

    start: a checkpoint of the phases before the last, which are then left out.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    if start is None:
        model, tokenizer, losses = train(recipe)
    else:
        tokenizer = AutoTokenizer.from_pretrained(start, local_files_only=True)
        model, losses = LlamaForCausalLM.from_pretrained(start, local_files_only=True, dtype=torch.float32), []
    losses += refine(model, tokenizer, recipe)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    earlier = None if start is None else json.loads((start / "training.json").read_text(encoding="utf-8"))["seconds"]
    record: dict[str, object] = {
        "recipe": asdict(recipe),
        "seconds": {"wall": round(wall), "cpu": round(cpu)},
        "seconds_of_earlier_phases": earlier,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "held_out_accuracy": accuracies(model, tokenizer, "held-out", EVALUATION_PAIRS),
        "pairs_measured": EVALUATION_PAIRS,
        "torch": torch.__version__,
    }
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def evaluate(directory: Path, split: Split) -> dict[str, dict[str, float]]:
    """Accuracy of a saved checkpoint on every claimed task."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    return accuracies(model, tokenizer, split, EVALUATION_PAIRS)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m discovery.demo.train", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=model_directory(), help="checkpoint folder (default: the package's)"
    )
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--refine", type=Path, metavar="DIR", help="only the last phase, from this checkpoint on")
    parser.add_argument("--evaluate", action="store_true", help="measure the checkpoint in --out instead of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        if not hasattr(torch.optim, "Muon"):
            parser.error(f"training needs PyTorch 2.9 or later (torch.optim.Muon); this is {torch.__version__}")
        train_and_save(Recipe(seed=options.seed, steps=options.steps), options.out, options.refine)
    for task, accuracy in evaluate(options.out, "held-out").items():
        print(f"{task:24s} clean {accuracy['clean']:.3f}  corrupt {accuracy['corrupt']:.3f}")


if __name__ == "__main__":
    main()
