"""A cache of the Hugging Face hub as its client leaves it, so that hub names and revisions work without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast


def write_hub_cache(root: Path, name: str, revisions: Mapping[str, PreTrainedModel]) -> dict[str, str]:
    """Puts a repository with these revisions under `root`; gives the commit of each."""
    repository, commits = root / f"models--{name.replace('/', '--')}", {}
    for number, (revision, model) in enumerate(revisions.items(), 1):
        commits[revision] = f"{number:040x}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commits[revision])
        folder = repository / "snapshots" / commits[revision]
        model.save_pretrained(folder)
        words = {str(token): token for token in range(model.config.vocab_size)}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return commits
