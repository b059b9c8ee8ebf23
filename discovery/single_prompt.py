"""One prompt as token ids: typed text, or a file of ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from discovery.task import BadTask, PromptPair
from discovery.tokenisation import Bos, Ids, tokenise


class BadPrompt(ValueError):
    """A prompt that cannot be turned into tokens."""


def prompt_tokens(
    text: str, tokenizer: PreTrainedTokenizerBase | None, bos: Bos = "auto", chat_template: bool = False
) -> Ids:
    """The tokens of a prompt.

    bos: `auto` puts a special token in front where the tokenizer does not by itself, as circuit-tracer does: what happens at
    the first position is not the prompt's. `always`: the BOS token; `never`: nothing. Raises BadPrompt.
    """
    if tokenizer is None:
        raise BadPrompt('the model has no tokenizer: give a JSON file {"tokens": [ids]} in place of the prompt')
    try:
        # Only the prompt's tokens are looked at.
        pair = tokenise([PromptPair(text, text, ((0,),), ())], tokenizer, bos, chat_template)[0]
    except BadTask as error:
        raise BadPrompt(f"prompt {text!r}: {error}".replace("row 1: ", "")) from None
    ids = pair.clean
    if bos != "auto" or ids[0] in tokenizer.all_special_ids:
        return ids
    special = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, *tokenizer.all_special_ids)
    found = [int(token) for token in special if isinstance(token, int)]
    return (*found[:1], *ids)


def read_token_file(path: str | Path) -> dict[str, Any]:
    """A JSON file {"tokens": [ids], ...}, or a list of ids alone; nothing is put in front. Raises BadPrompt naming the file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadPrompt(f"token file {path} cannot be read: {error}") from None
    content = {"tokens": content} if isinstance(content, list) else content
    tokens = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int and token >= 0 for token in tokens):
        raise BadPrompt(f'token file {path}: "tokens" must be a list of token ids (whole numbers from 0)')
    return content


def prompt_or_file(
    given: str, tokenizer: PreTrainedTokenizerBase | None, bos: Bos = "auto", chat_template: bool = False
) -> Ids:
    """Tokens of what was typed where a prompt is wanted: the prompt itself, or the name of a .json file of token ids."""
    if given.endswith(".json") and Path(given).is_file():
        return tuple(read_token_file(given)["tokens"])
    return prompt_tokens(given, tokenizer, bos, chat_template)


def read_prompts(
    path: str | Path, tokenizer: PreTrainedTokenizerBase | None, bos: Bos = "auto", chat_template: bool = False
) -> list[Ids]:
    """The prompts of a file: .txt, one a line; .json and .jsonl as corpus files (texts or token ids)."""
    if Path(path).suffix.lower() != ".txt":
        from discovery.corpus_files import read_corpus

        rows: list[str | Ids] = [document.content for document in read_corpus([path])]
    else:
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadPrompt(f"prompt file {path} cannot be read: {error}") from None
        rows = [line.rstrip("\r") for line in lines if line.strip()]
    if not rows:
        raise BadPrompt(f"prompt file {path} holds no prompt")
    return [prompt_tokens(row, tokenizer, bos, chat_template) if isinstance(row, str) else row for row in rows]
