"""Tokens as readers see them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase | None) -> tuple[str, ...]:
    """Each token on its own as text, the space in front of a word included where the tokenizer has it in the token.

    Numbers where there is no tokenizer. What comes out is hostile text.
    """
    if tokenizer is None:
        return tuple(map(str, ids))
    texts = [str(tokenizer.decode([number])) for number in ids]
    # Sentence-piece decoders drop the space of a first word; the piece itself still shows it.
    pieces = map(str, tokenizer.convert_ids_to_tokens(list(ids)))
    return tuple(
        f" {text}" if piece[:1] in ("▁", "Ġ") and not text.startswith(" ") else text
        for text, piece in zip(texts, pieces)
    )
