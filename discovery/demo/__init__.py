"""The embedded model: a small language model trained on generated English, with the tasks it is claimed to know."""

from __future__ import annotations

from pathlib import Path

CLAIMED_TASKS: tuple[str, ...] = (
    "ioi",
    "greater-than",
    "gendered-pronoun",
    "subject-verb-agreement",
    "country-capital",
    "two-hop",
    "induction",
)
"""Built-in tasks (default variants) that the embedded model gets right (docs/demo_model.md)."""


def model_directory() -> Path:
    """The folder of the embedded model, an ordinary Hugging Face checkpoint with its tokenizer."""
    return Path(__file__).parent / "model"


def transcoder_directory() -> Path:
    """The folder of the embedded model's transcoders, in circuit-tracer's layout (docs/transcoders.md)."""
    return Path(__file__).parent / "transcoders"
