"""Text to run a model on: corpus files read into documents, and documents cut into windows of tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
PIECE = 4000
"""Characters from which on a piece of a .txt file ends at the next blank line."""
_CHUNK = 1000  # texts that are encoded in one call, between two steps of the progress bar
_BLANK = re.compile(r"\n[ \t\r]*\n\s*")


class BadCorpus(ValueError):
    """A corpus that cannot be read or used; names the file and the row."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus; windows never cross from one into another."""

    content: str | Ids
    """Text, or the model's own token ids."""
    where: str
    """File and row, for messages."""


def read_corpus(paths: Iterable[str | Path]) -> tuple[Document, ...]:
    """The documents of corpus files, in order.

    .json: a list of texts. .jsonl: one object a line, with "text" or with "tokens" (ids); a bare text also counts.
    Rows of either kind may be mixed. .txt: plain text knows no documents, so it is cut at blank lines into pieces of
    about `PIECE` characters (paragraphs stay whole). Blank rows are passed over. Raises BadCorpus.
    """
    documents: list[Document] = []
    for path in map(Path, paths):
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise BadCorpus(f"corpus {path}: the name must end in one of {', '.join(READERS)}")
        found = [document for document in reader(path) if not _is_blank(document.content)]
        if not found:
            raise BadCorpus(f"corpus {path} holds no text")
        documents += found
    if not documents:
        raise BadCorpus("a corpus needs at least one file")
    return tuple(documents)


def _is_blank(content: str | Ids) -> bool:
    return not (content.strip() if isinstance(content, str) else content)


def _text(path: Path) -> str:
    if not path.is_file():
        raise BadCorpus(f"corpus file {path} does not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadCorpus(f"corpus {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None


def _plain(path: Path) -> Iterator[Document]:
    piece, length, number = [], 0, 0
    for paragraph in (*_BLANK.split(_text(path)), None):
        if paragraph is not None:
            piece.append(paragraph)
            length += len(paragraph)
        if piece and (paragraph is None or length >= PIECE):
            number += 1
            yield Document("\n\n".join(piece).strip(), f"{path}, piece {number}")
            piece, length = [], 0


def _json(path: Path) -> Iterator[Document]:
    values = _parsed(_text(path), f"corpus {path}")
    if not isinstance(values, list):
        raise BadCorpus(f"corpus {path}: must be a JSON list of texts, not {_kind(values)}")
    for number, value in enumerate(values, 1):
        yield _document(value, f"{path}, row {number}")


def _json_lines(path: Path) -> Iterator[Document]:
    # Not splitlines: it also splits at characters that may stand inside a JSON text (U+2028, U+0085).
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield _document(_parsed(line, f"corpus {path}, line {number}"), f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadCorpus(f"{where}: not JSON: {error}") from None


def _document(value: Any, where: str) -> Document:
    """A text, {"text": ...} or {"tokens": [...]}; other fields of an object are passed over."""
    if isinstance(value, dict):
        if ("text" in value) == ("tokens" in value):
            raise BadCorpus(f'corpus {where}: an object needs "text" or "tokens", one of them')
        if "tokens" in value:
            return Document(_ids(value["tokens"], where), where)
        value = value["text"]
    if not isinstance(value, str):
        raise BadCorpus(f"corpus {where}: must be a text, not {_kind(value)}")
    return Document(value, where)


def _ids(values: Any, where: str) -> Ids:
    if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
        raise BadCorpus(f'corpus {where}: "tokens" must be a list of token ids (whole numbers from 0)')
    return tuple(values)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "null")


READERS: dict[str, Callable[[Path], Iterator[Document]]] = {".txt": _plain, ".json": _json, ".jsonl": _json_lines}
"""File ending -> reader."""


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document, with what the tokenizer puts in front of every text."""

    tokens: Ids
    """Token ids."""
    document: int
    """Number of the document in its corpus."""
    fixed: int
    """Leading positions that are the same whatever the text says (the BOS token): not trained or measured on. At least
    1: graphs zero the features and errors of position 0, so nothing is to be learnt there."""
    start: int = 0
    """Place of the first token in its document; below 0 where the tokenizer put it in front."""

    @property
    def free(self) -> int:
        """Positions that count."""
        return len(self.tokens) - self.fixed


def token_windows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase | None, width: int, vocabulary: int
) -> tuple[Window, ...]:
    """Every document as windows of at most `width` tokens, in order; none crosses into another document.

    Each window of a text begins as the tokenizer begins a text (its BOS token, where it has one), since models attend to
    that token from everywhere; none is padded. Token ids are taken as they are. A rest of one token is dropped.
    vocabulary: number of token ids that the model has. Raises BadCorpus naming the document.
    """
    if width < 3:
        raise BadCorpus(f"windows need at least 3 tokens, not {width}")
    windows: list[Window] = []
    start = _start(documents, tokenizer)
    for number, (document, ids) in enumerate(zip(documents, _encoded(documents, tokenizer))):
        if ids and max(ids) >= vocabulary:
            raise BadCorpus(
                f"corpus {document.where}: token id {max(ids)} is not below the vocabulary size {vocabulary}"
            )
        front = start if isinstance(document.content, str) else ()
        body = ids[len(front) :] if ids[: len(front)] == front else ids
        step = width - len(front)
        for first in range(0, len(body), step):
            tokens = front + body[first : first + step]
            if len(tokens) > max(1, len(front)):
                windows.append(Window(tokens, number, max(1, len(front)), first - len(front)))
    if not windows:
        raise BadCorpus("the corpus has no document of two tokens or more")
    return tuple(windows)


def _start(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase | None) -> Ids:
    """The special tokens that the tokenizer puts in front of a text."""
    text = next((document.content for document in documents if isinstance(document.content, str)), None)
    if text is None or tokenizer is None:
        return ()
    words: Any = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole: Any = tokenizer("a", verbose=False)["input_ids"]
    for first in range(len(whole) - len(words) + 1):
        if whole[first : first + len(words)] == words:
            return tuple(whole[:first])
    return ()


def _encoded(documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Ids]:
    """Token ids of each document, without special tokens for texts."""
    for first in tqdm(range(0, len(documents), _CHUNK), desc="tokens", unit="chunk", leave=False, delay=1):
        chunk = documents[first : first + _CHUNK]
        texts = [document.content for document in chunk if isinstance(document.content, str)]
        if texts and tokenizer is None:
            where = next(document.where for document in chunk if isinstance(document.content, str))
            raise BadCorpus(f"corpus {where}: is text, but the model has no tokenizer: give token ids")
        encoded: Iterator[Any] = iter(())
        if texts and tokenizer is not None:
            made: Any = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
            encoded = iter(made["input_ids"])
        for document in chunk:
            yield tuple(next(encoded)) if isinstance(document.content, str) else document.content
