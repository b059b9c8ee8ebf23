"""Train the embedded model's transcoders, or measure the shipped: `python -m discovery.demo.train_transcoders [--evaluate]`."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from discovery.activation_stream import ActivitySource
from discovery.batches import model_limits
from discovery.component_model import ComponentModel
from discovery.corpus_files import Document, Window, token_windows
from discovery.demo import model_directory, transcoder_directory
from discovery.demo.corpus import documents
from discovery.loading import load_model
from discovery.reconstruction import LayerFit, measure_fit
from discovery.training_settings import TrainingSettings
from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
from discovery.transcoder_source import load_transcoders, place_transcoders
from discovery.transcoder_training import train_transcoders

EVALUATION_SEED = 1_000_003
"""Of the documents that the figures are measured on; those that also occur in training are left out."""
EVALUATION_DOCUMENTS = 2000
"""How many there are, before that."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the transcoders depend on, besides the model."""

    documents: int = 20_000
    """Generated documents."""
    corpus_seed: int = 2
    """Of the documents."""
    settings: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(activation="topk", features=1024, k=6, steps=200)
    )
    """Of the training."""


def windows(model: ComponentModel, texts: list[str]) -> tuple[Window, ...]:
    """Documents as tokens."""
    longest, vocabulary = model_limits(model.config)
    assert longest is not None and vocabulary is not None
    return token_windows([Document(text, "generated text") for text in texts], model.tokenizer, longest, vocabulary)


def source(model: ComponentModel) -> ActivitySource:
    """Where the transcoders read and write."""
    return ActivitySource(model, tuple(range(len(model.blocks))), "mlp-in", "mlp-out")


def train_and_save(recipe: Recipe, directory: Path) -> None:
    """Train and write the transcoders in circuit-tracer's layout, float16, with `training.json`."""
    wall, cpu = time.perf_counter(), time.process_time()
    model = load_model(model_directory(), device="cpu")
    texts = list(itertools.islice(documents(recipe.corpus_seed), recipe.documents))
    done = train_transcoders(source(model), windows(model, texts), recipe.settings)
    assert done is not None
    stored = replace(place_transcoders(done.transcoders, "cpu", torch.float16), model_name="edgewise/embedded")
    write_circuit_tracer(stored, directory)
    record = {
        "recipe": asdict(recipe),
        "seconds": {"wall": round(time.perf_counter() - wall), "cpu": round(time.process_time() - cpu)},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "held_out": [asdict(fit) for fit in evaluate(directory, recipe)],
    }
    (directory / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def evaluate(directory: Path, recipe: Recipe | None = None, count: int = EVALUATION_DOCUMENTS) -> tuple[LayerFit, ...]:
    """The figures of stored transcoders on held-out generated text. recipe: what they were trained on."""
    recipe = recipe or Recipe()
    seen = set(itertools.islice(documents(recipe.corpus_seed), recipe.documents))
    texts = [text for text in itertools.islice(documents(EVALUATION_SEED), count) if text not in seen]
    model = load_model(model_directory(), device="cpu")
    return measure_fit(load_transcoders(directory, dtype="float32"), source(model), windows(model, texts))


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m discovery.demo.train_transcoders", description=__doc__)
    parser.add_argument("--out", type=Path, default=transcoder_directory(), help="folder (default: the package's)")
    parser.add_argument("--steps", type=int, default=Recipe().settings.steps)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--evaluate", action="store_true", help="measure the transcoders in --out instead of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe()
    if not options.evaluate:
        train_and_save(replace(recipe, settings=replace(recipe.settings, steps=options.steps)), options.out)
    for fit in evaluate(options.out, recipe):
        print(
            f"layer {fit.layer}  FVU {fit.fvu:.4f}  L0 {fit.l0:.2f}  dead {fit.dead:.1%}  "
            f"PCA of rank {fit.pca_rank}: FVU {fit.pca_fvu:.4f}"
        )


if __name__ == "__main__":
    main()
