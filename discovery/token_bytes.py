"""Every token of a tokenizer as the bytes that it stands for, whatever the tokenizer is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

_SAMPLE = 'The cat sat, in 1984: {"key": "a word"}'
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class TokenBytes:
    """The vocabulary as bytes."""

    texts: tuple[bytes | None, ...]
    """Token id -> what it stands for; None for special tokens, for ids without a token and for tokens without text."""
    spellings: dict[bytes, tuple[int, ...]]
    """What tokens stand for -> their ids."""

    def prefixes(self, text: bytes) -> set[int]:
        """Ids of the tokens with which a text can begin."""
        return {i for end in range(1, len(text) + 1) for i in self.spellings.get(text[:end], ())}


def token_bytes(tokenizer: PreTrainedTokenizerBase, size: int) -> TokenBytes:
    """The bytes of ids 0 to size - 1.

    Read from the vocabulary by the kind of its decoder (byte-level, sentence-piece with byte fallback, word-piece) and tried
    on a sample; where that does not give the sample back, each token is decoded behind another one.
    """
    names: list[Any] = [None] * size
    for name, number in tokenizer.get_vocab().items():
        if number < size:
            names[number] = name
    special = set(tokenizer.all_special_ids)
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    read = _reader(tokenizer)

    def text(number: int, name: Any) -> bytes | None:
        if name is None or number in special:
            return None
        return (added[number].encode() if number in added else read(name)) or None

    texts = tuple(text(number, name) for number, name in enumerate(names))
    if not _gives_back(tokenizer, texts):
        decoded = _decoded(tokenizer, size)
        texts = tuple(None if names[i] is None or i in special else decoded[i] or None for i in range(size))
    spellings: dict[bytes, list[int]] = {}
    for number, spelling in enumerate(texts):
        if spelling is not None:
            spellings.setdefault(spelling, []).append(number)
    return TokenBytes(texts, {spelling: tuple(ids) for spelling, ids in spellings.items()})


def _reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """How a name in the vocabulary is read."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    decoder = "" if backend is None else json.dumps(json.loads(backend.to_str()).get("decoder"))
    if '"ByteLevel"' in decoder:
        table = _byte_level()
        return lambda name: b"".join(table.get(letter, letter.encode()) for letter in name)
    if '"WordPiece"' in decoder:
        return lambda name: name[2:].encode() if name.startswith("##") else b" " + name.encode()

    def piece(name: str) -> bytes:
        byte = _BYTE.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()

    return piece


def _byte_level() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the others for what follows U+0100."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): bytes([byte]) for byte in own} | {chr(256 + i): bytes([b]) for i, b in enumerate(others)}


def _gives_back(tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes | None]) -> bool:
    """Whether the bytes of the sample's tokens are the sample, where the vocabulary can spell it."""
    encoded: Any = tokenizer(_SAMPLE, add_special_tokens=False)
    ids = encoded["input_ids"]
    if any(i >= len(texts) or texts[i] is None for i in ids):
        # Unknown words: compare with what the tokenizer itself makes of the rest.
        ids = [i for i in ids if i < len(texts) and texts[i] is not None]
    joined = b"".join(texts[i] or b"" for i in ids).strip()
    return joined in (_SAMPLE.encode(), str(tokenizer.decode(ids)).strip().encode())


def _decoded(tokenizer: PreTrainedTokenizerBase, size: int) -> list[bytes]:
    """Each token's text behind a token that it cannot merge with."""
    encoded: Any = tokenizer("a", add_special_tokens=False)
    anchor = encoded["input_ids"][-1:]
    before = str(tokenizer.decode(anchor))
    found = []
    for number in range(size):
        whole = str(tokenizer.decode([*anchor, number]))
        text = whole.removeprefix(before) if whole.startswith(before) else ""
        found.append(b"" if "\ufffd" in text else text.encode())  # parts of characters cannot be told apart
    return found
