"""`edgewise train-transcoders`: transcoders of every layer of a model, in circuit-tracer's layout, with their figures."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.fingerprint import edgewise_version, hash_file, hash_settings, versions
from pipelines.model_source import hash_model, load, model_title
from pipelines.settings import ConfigError
from pipelines.store import RunStore
from pipelines.summary import table

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.corpus_files import Document, Window
    from discovery.reconstruction import LayerFit
    from discovery.training_settings import TrainingSettings

RECORD, CHECKPOINT = "training.json", "training.checkpoint"
GENERATED = 12_000
"""Documents of generated text that the embedded model's transcoders are trained on where no corpus is named."""


@dataclass(frozen=True)
class Corpus:
    """Which text, and how it is cut."""

    files: tuple[str, ...]
    """Corpus files; none = the embedded model's own generated text."""
    width: int
    """Most tokens of a window, as far as the model has positions."""
    held_out: float
    """Share of the documents that are kept for the figures."""


def train(config: RunConfig, corpus: Corpus, settings: TrainingSettings, sites: tuple[Any, Any]) -> list[str]:
    """Trains, measures on held-out documents and writes the directory; gives the lines to print (none but for process 0).

    A stopped run goes on from its checkpoint; a finished one is only told again. Raises ConfigError for a directory that holds
    something else.
    """
    from discovery.activation_stream import ActivitySource
    from discovery.distributed import joined_processes
    from discovery.reconstruction import measure_fit
    from discovery.transcoder_formats.circuit_tracer import write_circuit_tracer
    from discovery.transcoder_training import train_transcoders

    clock = Clock()
    with joined_processes(config.model.device) as (rank, device):
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, device=device))
        model, documents = load(config.model), read_documents(config, corpus)
        learnt, kept = split_windows(model, documents, corpus, settings.seed)
        identity = _identity(config, corpus, settings, sites)
        store = RunStore(
            config.out or f"transcoders/{model_title(config.model)}-{settings.kind}-{hash_settings(identity)}"
        )
        if store.path(RECORD).exists():
            return _told_again(store, identity)
        source = ActivitySource(model, tuple(range(len(model.blocks))), *sites)
        with clock.time("training"):
            checkpoint = store.path(CHECKPOINT)
            done = train_transcoders(source, learnt, settings, checkpoint=checkpoint, identity=hash_settings(identity))
        assert done is not None
        if rank > 0:
            return []
        with clock.time("figures"):
            fits = measure_fit(done.transcoders, source, kept)
        named = dataclasses.replace(done.transcoders, model_name=model_title(config.model))
        write_circuit_tracer(named, store.directory)
        record = {
            "identity": identity,
            "held_out": _figures(fits, kept),
            "trained_on": {"windows": len(learnt), "tokens": sum(window.free for window in learnt)},
            "curve": list(done.curve),
            "seconds": {step: round(seconds, 1) for step, seconds in clock.seconds.items()},
            "versions": versions(),
        }
        store.write_json(RECORD, record)
        checkpoint.unlink(missing_ok=True)
        return [*_lines(record), f"wrote {store.directory}"]


def read_documents(config: RunConfig, corpus: Corpus) -> tuple[Document, ...]:
    """The corpus. Raises ConfigError where none is named and the model is not the embedded one."""
    from discovery.corpus_files import Document, read_corpus

    if corpus.files:
        return read_corpus(corpus.files)
    if config.model.name is not None:
        raise ConfigError("--corpus is needed: .txt, .json or .jsonl files of text like the model's training text")
    from discovery.demo.corpus import documents

    source = documents(config.seed + 1)
    return tuple(Document(next(source), f"generated document {i + 1}") for i in range(GENERATED))


def split_windows(
    model: ComponentModel, documents: tuple[Document, ...], corpus: Corpus, seed: int
) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """Windows to learn from and windows of other documents to measure on."""
    from discovery.batches import model_limits
    from discovery.corpus_files import token_windows

    longest, vocabulary = model_limits(model.config)
    width = min(corpus.width, longest or corpus.width)
    windows = token_windows(documents, model.tokenizer, width, vocabulary or 1 << 62)
    numbers = sorted({window.document for window in windows})
    count = max(1, round(corpus.held_out * len(numbers)))
    if count >= len(numbers):
        raise ConfigError(
            f"the corpus has {len(numbers)} documents, too few to hold {count} out: give more, or a smaller --held-out"
        )
    held = set(random.Random(f"held-out:{seed}").sample(numbers, count))
    return (
        tuple(window for window in windows if window.document not in held),
        tuple(window for window in windows if window.document in held),
    )


def _identity(config: RunConfig, corpus: Corpus, settings: TrainingSettings, sites: tuple[str, str]) -> dict[str, Any]:
    """Everything that the result depends on, as plain data."""
    return {
        "edgewise": edgewise_version(),
        "model": {
            "name": model_title(config.model),
            "dtype": config.model.dtype,
            "files": hash_model(config.model),
        },
        "corpus": {
            "files": {Path(file).name: hash_file(Path(file)) for file in corpus.files},
            "width": corpus.width,
            "held_out": corpus.held_out,
            "generated": 0 if corpus.files else GENERATED,
        },
        "settings": dataclasses.asdict(settings),
        "sites": list(sites),
    }


def _told_again(store: RunStore, identity: dict[str, Any]) -> list[str]:
    from pipelines.store import first_difference

    record = store.read_json(RECORD)
    difference = first_difference(record.get("identity"), identity, "identity")
    if difference is not None:
        raise ConfigError(
            f"{store.directory} holds finished transcoders of another run ({difference}): give another --out"
        )
    return [*_lines(record), f"{store.directory} was finished before"]


def _figures(fits: tuple[LayerFit, ...], windows: tuple[Window, ...]) -> dict[str, Any]:
    return {
        "documents": len({window.document for window in windows}),
        "tokens": sum(window.free for window in windows),
        "mean_fvu": sum(fit.fvu for fit in fits) / len(fits),
        "mean_l0": sum(fit.l0 for fit in fits) / len(fits),
        "layers": [dataclasses.asdict(fit) for fit in fits],
    }


def _lines(record: dict[str, Any]) -> list[str]:
    held_out = record["held_out"]
    rows = [("layer", "FVU", "L0", "dead", "PCA of equal rank: FVU")]
    for fit in held_out["layers"]:
        rows.append(
            (str(fit["layer"]), f"{fit['fvu']:.4f}", f"{fit['l0']:.2f}", f"{fit['dead']:.1%}", f"{fit['pca_fvu']:.4f}")
        )
    where = f"{held_out['tokens']} tokens of {held_out['documents']} held-out documents"
    mean = f"mean FVU {held_out['mean_fvu']:.4f} at L0 {held_out['mean_l0']:.2f}"
    return [f"on {where}: {mean}", *table(rows)]
