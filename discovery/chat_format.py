"""Chat messages as the tokens that a model reads: its own template, or a plain format where it has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

ChatRole = Literal["system", "user", "assistant"]
_NAMES: dict[ChatRole, str] = {"system": "System", "user": "User", "assistant": "Assistant"}
PLAIN_STOPS = tuple(f"\n{name}:" for name in _NAMES.values())
"""In the plain format a reply ends where the model goes on with the next speaker."""


class BadChat(ValueError):
    """Messages that the model's template does not take."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: ChatRole
    """Who speaks."""
    content: str
    """What is said; hostile."""


def prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a chat up to the reply.

    Without a template: `System: ...`, `User: ...`, `Assistant: ...`, parted by empty lines, and `Assistant:` at the end;
    there the names of special tokens in the messages are ordinary text. With one, it is the template that decides (those
    that take no system message get it as the beginning of the first user message). Raises BadChat.
    """
    if not tokenizer.chat_template:
        parts = [f"{_NAMES[message.role]}: {message.content}\n\n" for message in messages]
        encoded: Any = tokenizer("".join(parts) + "Assistant:", split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])
    try:
        return _by_template(messages, tokenizer)
    except Exception as error:  # a template is a program that came with the model: it may raise anything
        merged = _without_system(messages)
        if merged == list(messages):
            raise BadChat(f"the model's chat template refuses the messages: {_one_line(error)}") from error
    try:
        return _by_template(merged, tokenizer)
    except Exception as error:
        raise BadChat(f"the model's chat template refuses the messages: {_one_line(error)}") from error


def _by_template(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    encoded: Any = tokenizer(str(text), add_special_tokens=False, verbose=False)
    return list(encoded["input_ids"])


def _without_system(messages: Sequence[Message]) -> list[Message]:
    said = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not said or not others or others[0].role != "user":
        return list(messages)
    return [Message("user", "\n\n".join([*said, others[0].content])), *others[1:]]


def encode_inside(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text in the middle of another one: without a blank in front that some tokenizers add."""
    anchor: Any = tokenizer("\n", add_special_tokens=False, split_special_tokens=True)
    whole: Any = tokenizer("\n" + text, add_special_tokens=False, split_special_tokens=True)
    before, ids = anchor["input_ids"], whole["input_ids"]
    if before and ids[: len(before)] == before:
        return list(ids[len(before) :])
    plain: Any = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(plain["input_ids"])


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
