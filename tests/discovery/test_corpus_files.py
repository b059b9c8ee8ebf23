"""Corpus files are read whole or refused in one line, and windows cover every document once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from discovery.corpus_files import PIECE, BadCorpus, Document, read_corpus, token_windows


def letters() -> PreTrainedTokenizerBase:
    """A tokenizer of letters that begins every text with token 1."""
    vocabulary = {"<unk>": 0, "<bos>": 1} | {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 2)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split("", "isolated")  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>")


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["one", "  ", "two\u2028"]))
    (tmp_path / "b.jsonl").write_text('{"text": "three", "id": 7}\n\n{"tokens": [4, 5, 6]}\n"\\u2028six"\n')
    (tmp_path / "c.txt").write_text("seven\n \nstill seven\n")
    found = read_corpus([tmp_path / name for name in ("a.json", "b.jsonl", "c.txt")])
    contents = [document.content for document in found]
    assert contents == ["one", "two\u2028", "three", (4, 5, 6), "\u2028six", "seven\n\nstill seven"]
    assert found[1].where.endswith("a.json, row 3")
    assert found[3].where.endswith("b.jsonl, line 3")


def test_plain_text_is_cut_between_paragraphs(tmp_path: Path) -> None:
    paragraphs = [f"{i} " + "word " * (100 + 13 * i) for i in range(40)]
    (tmp_path / "a.txt").write_text("\n\n\n".join(paragraphs))
    found = [document.content for document in read_corpus([tmp_path / "a.txt"])]
    assert len(found) > 3
    assert "\n\n".join(map(str, found)).split() == " ".join(paragraphs).split()
    assert all(isinstance(piece, str) and len(piece) >= PIECE for piece in found[:-1])
    starts = {paragraph.split()[0] for paragraph in paragraphs}
    assert all(str(piece).split()[0] in starts for piece in found)


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("a.json", '{"text": "one"}', "a JSON list"),
        ("a.json", '["one", 2]', "row 2: must be a text, not a number"),
        ("a.json", "[", "not JSON"),
        ("a.json", '["one"', "not JSON"),
        ("a.json", "[]", "no text"),
        ("a.jsonl", '{"text": "one"}\n{"words": "two"}', 'line 2: an object needs "text" or "tokens"'),
        ("a.jsonl", '{"tokens": [1, true]}', "whole numbers"),
        ("a.jsonl", '{"tokens": [1, -1]}', "whole numbers"),
        ("a.jsonl", '{"text": null}', "not null"),
        ("a.jsonl", "[" * 100000, "line 1: not JSON"),
        ("a.txt", " \n\n ", "no text"),
        ("a.csv", "one", "must end in one of .txt, .json, .jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadCorpus, match=name.replace(".", r"\.")) as caught:
        read_corpus([tmp_path / name])
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(BadCorpus, match="does not exist"):
        read_corpus([tmp_path / "none.txt"])
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadCorpus, match="UTF-8"):
        read_corpus([tmp_path / "a.txt"])
    with pytest.raises(BadCorpus, match="at least one"):
        read_corpus([])


def test_windows_cover_each_document_once() -> None:
    texts = ["abcdefghijk", "ab", "a", "abcde"]
    documents = [Document(text, f"row {i}") for i, text in enumerate(texts)] + [Document((1, 9, 8, 7, 6), "ids")]
    windows = token_windows(documents, letters(), 5, 60)
    assert all(len(window.tokens) <= 5 for window in windows)
    assert all(window.fixed == 1 for window in windows)
    for number, text in enumerate(texts):
        mine = [window for window in windows if window.document == number]
        assert all(window.tokens[0] == 1 for window in mine)
        assert [token for window in mine for token in window.tokens[1:]] == [ord(letter) - 95 for letter in text]
        assert sum(window.free for window in mine) == len(text)
    assert [window.tokens for window in windows if window.document == 4] == [(1, 9, 8, 7, 6)]


def test_windows_refuse_what_the_model_cannot_read() -> None:
    with pytest.raises(BadCorpus, match=r"row 9.*vocabulary size 20"):
        token_windows([Document((3, 20), "row 9")], None, 5, 20)
    with pytest.raises(BadCorpus, match=r"row 8.*no tokenizer"):
        token_windows([Document((3, 4), "row 7"), Document("a", "row 8")], None, 5, 20)
    with pytest.raises(BadCorpus, match="two tokens or more"):
        token_windows([Document((3,), "row 9")], None, 5, 20)
