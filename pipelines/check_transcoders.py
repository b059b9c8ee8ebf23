"""`edgewise check-transcoders`: do these transcoders or autoencoders fit the model, and if not, what is wrong?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.config import ModelConfig
from pipelines.model_source import load, model_place, model_title
from pipelines.settings import ConfigError
from pipelines.summary import table

if TYPE_CHECKING:
    from discovery.component_model import ComponentModel
    from discovery.corpus_files import Document, Window
    from discovery.transcoder_check import LayerCheck, TranscoderCheck

_SEED = 2**20 + 1
"""Of the generated text: documents that the embedded model was not trained on in this order."""


def check(model_config: ModelConfig, options: argparse.Namespace) -> tuple[TranscoderCheck, str]:
    """Checks what the options name; gives the result and the model's title. Raises ConfigError for options at odds."""
    from discovery.transcoder import SITES
    from discovery.transcoder_check import check_transcoders
    from discovery.transcoder_source import load_transcoders

    for name in ("reads", "writes"):
        if getattr(options, name) not in (None, *SITES):
            raise ConfigError(f"--{name} {getattr(options, name)}: there is no such site (sites: {', '.join(SITES)})")
    for name, least in (("tokens", 2), ("context", 3)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} must be at least {least}, not {getattr(options, name)}")
    layers = _layers(options.layers)
    documents = _documents(model_config, options)
    model = load(model_config)
    transcoders = load_transcoders(
        options.transcoders,
        device=model.device,
        layers=layers,
        variant=options.variant,
        l0=options.l0,
        reads=options.reads,
        writes=options.writes,
    )
    windows = _windows(model, documents, options)
    found = check_transcoders(model, transcoders, windows, splice=not options.no_losses, ablation=options.ablate_with)
    return found, model_title(model_config)


def _layers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--layers {text}: write whole numbers with commas between them, such as 0,5,11") from None


def _documents(model_config: ModelConfig, options: argparse.Namespace) -> Sequence[Document]:
    from discovery.corpus_files import Document, read_corpus

    if options.corpus and options.prompts:
        raise ConfigError("--corpus and --prompts: give one of them")
    if options.corpus:
        return read_corpus(options.corpus)
    if options.prompts:
        return [Document(text, f"--prompts {number}") for number, text in enumerate(options.prompts, 1)]
    from discovery.demo import model_directory

    if Path(model_place(model_config)).resolve() != model_directory().resolve():
        raise ConfigError("which text? --corpus FILE ... or --prompts TEXT ... (only the embedded model has its own)")
    from itertools import islice

    from discovery.demo.corpus import documents

    texts = islice(documents(_SEED), 2 + options.tokens // 8)  # a document has ten words at least
    return [Document(text, f"generated text {number}") for number, text in enumerate(texts, 1)]


def _windows(model: ComponentModel, documents: Sequence[Document], options: argparse.Namespace) -> tuple[Window, ...]:
    """Windows from the start of the corpus, until there are enough tokens that count."""
    from discovery.batches import model_limits
    from discovery.corpus_files import token_windows

    longest, _ = model_limits(model.config)
    vocabulary = model.config.get_text_config().vocab_size
    width = options.context if longest is None else min(options.context, longest)
    chosen: list[Window] = []
    tokens = 0
    for first in range(0, len(documents), 200):
        for window in token_windows(documents[first : first + 200], model.tokenizer, width, vocabulary):
            if tokens >= options.tokens:
                return tuple(chosen)
            chosen.append(window)
            tokens += window.free
    return tuple(chosen)


def as_json(found: TranscoderCheck, model: str) -> str:
    """The result as JSON."""
    return json.dumps({"model": model, **found.to_json()}, indent=1, allow_nan=False)


def write_json(text: str, path: Path) -> None:
    """Writes a file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def check_summary(found: TranscoderCheck, model: str) -> str:
    """The table that is printed: a line for each layer, then for all at once, then what is wrong."""
    place = f"at {found.reads}" if found.reads == found.writes else f"from {found.reads} to {found.writes}"
    kind = "autoencoders" if found.reads == found.writes else "transcoders"
    lines = [f"{found.name}: {kind} {place} of {model}, on {found.tokens} tokens"]
    head = ["layer", "features", "FVU", "L0", "dead", "largest"]
    losses = found.clean_loss is not None
    rows = [head + (["loss", "ablated", "recovered"] if losses else [])]
    rows += [_row(one, losses) for one in found.layers]
    if losses:
        all_losses = [_loss(found.spliced_loss), _loss(found.ablated_loss), _share(found.recovered)]
        rows.append(["all", "", "", "", "", "", *all_losses])
    lines += table(rows, left=1)
    if losses:
        lines.append(
            f"loss: nats a token with the dictionary spliced in (untouched model: {_loss(found.clean_loss)}); "
            f"ablated: with the {'mean output' if found.ablation == 'mean' else 'output zeroed'} instead"
        )
    return "\n".join(lines + [f"! {one.diagnosis}" for one in found.layers if one.diagnosis])


def _row(one: LayerCheck, losses: bool) -> list[str]:
    row = [
        str(one.layer),
        str(one.features),
        f"{one.fvu:.3f}",
        f"{one.l0:.1f}",
        f"{one.dead:.1%}",
        f"{one.largest:.3g}",
    ]
    return row + ([_loss(one.spliced_loss), _loss(one.ablated_loss), _share(one.recovered)] if losses else [])


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
