"""Replies of a causal language model to chats: free text, or JSON that fits a schema."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from discovery.chat_format import PLAIN_STOPS, BadChat, encode_inside, prompt_ids
from discovery.chat_request import BadRequest, ChatRequest
from discovery.guided_json import write_json
from discovery.json_pen import Vocabulary
from discovery.loading import DTYPES, ModelNotLoaded, pick_device
from discovery.token_bytes import token_bytes
from discovery.token_stream import TokenStream

REPLY_TOKENS = 512
"""Most tokens of a reply whose request does not say."""
LongPrompts = Literal["refuse", "cut"]


@dataclass(frozen=True)
class Reply:
    """What the model said."""

    text: str
    """The whole reply; hostile."""
    finish: Literal["stop", "length"]
    """length: the limit of tokens ended it (JSON is then closed the shortest way, and still fits)."""
    prompt_tokens: int
    """Tokens that the model was given."""
    reply_tokens: int
    """Tokens that it was given or said after that: the JSON around its choices counts too."""
    cut_prompt_tokens: int = 0
    """Tokens of the prompt that did not fit into the context and were left out."""
    cut_strings: int = 0
    """Strings of the JSON that were closed because they had used up their share of the tokens."""


class ChatModel:
    """A model that answers chats, one at a time: it holds no lock itself."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        long_prompts: LongPrompts = "refuse",
    ) -> None:
        """name: what requests call it. long_prompts: whether prompts that do not fit are refused, or lose their middle."""
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.long_prompts: LongPrompts = long_prompts
        head: Any = model.get_output_embeddings()
        size = int(head.weight.shape[0])  # may be padded beyond the tokenizer's
        self.window = _window(model, tokenizer)
        ends = _ends(model, tokenizer)
        self._ends = ends
        tokens = token_bytes(tokenizer, size)
        self.vocabulary = Vocabulary.of(tokens, ends, lambda text: encode_inside(text, tokenizer))
        real = np.zeros(size, bool)
        real[[number for number in tokenizer.get_vocab().values() if number < size]] = True
        self._real = None if real.all() else real

    def reply(self, request: ChatRequest, emit: Callable[[str], None] | None = None) -> Reply:
        """Answers. emit: is given the text piece by piece as it is written; what it raises ends the reply.

        Raises BadRequest for a chat that the template refuses or that does not fit into the context.
        """
        prompt, most, cut = self._prompt(request)
        slide = self.long_prompts == "cut"
        stream = TokenStream(self.model, prompt, request.sampling, most, self.window, slide)
        out = _Output(emit, self._stops(request))
        cut_strings, finish = 0, "length"
        if request.schema is not None:
            written = write_json(request.schema, stream, self.vocabulary, out.take)
            cut_strings, finish = written.cut, "length" if written.shortened else "stop"
        elif self._say(stream, out):
            finish = "stop"
        text = out.finish()
        return Reply(text, finish, len(prompt), most - stream.left, cut, cut_strings)

    def _prompt(self, request: ChatRequest) -> tuple[list[int], int, int]:
        """The prompt, the most tokens that may follow, and how many tokens of it were left out."""
        try:
            prompt = prompt_ids(request.messages, self.tokenizer)
        except BadChat as error:
            raise BadRequest(str(error), "messages") from error
        if not prompt:
            raise BadRequest("the messages have no tokens", "messages")
        most = REPLY_TOKENS if request.limit is None else request.limit
        if self.window is None:
            return prompt, most, 0
        if self.long_prompts == "refuse":
            if len(prompt) >= self.window:
                raise BadRequest(
                    f"the messages are {len(prompt)} tokens, and the model's context is {self.window} with the reply",
                    "messages",
                    "context_length_exceeded",
                )
            return prompt, most, 0
        room = self.window - min(most, self.window // 2)
        cut = max(0, len(prompt) - room)
        return (prompt[:1] + prompt[cut + 1 :] if cut else prompt), most, cut

    def _stops(self, request: ChatRequest) -> tuple[str, ...]:
        if request.schema is not None:
            return ()
        return request.stops if self.tokenizer.chat_template else (*request.stops, *PLAIN_STOPS)

    def _say(self, stream: TokenStream, out: _Output) -> bool:
        """Free text. Gives whether it came to an end by itself."""
        while not stream.spent:
            token = stream.draw(self._real)
            stream.append([token])
            if token in self._ends:
                return True
            if not out.add(self.vocabulary.tokens.texts[token] or b""):
                return True
        return False


class _Output:
    """Bytes that become text, up to the first stop text. What may be the beginning of one is held back."""

    def __init__(self, emit: Callable[[str], None] | None, stops: Sequence[str]) -> None:
        self._emit = emit
        self._stops = stops
        self._held = max(map(len, stops), default=1) - 1
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._sent = 0
        self._begun = False

    def add(self, text: bytes) -> bool:
        """Takes more. Gives whether more is wanted."""
        self._take(self._decoder.decode(text))
        ends = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if ends:
            self._text = self._text[: min(ends)]
            self._decoder.reset()
        self._send(len(self._text) - (0 if ends else self._held))
        return not ends

    def take(self, text: bytes) -> None:
        """Takes more of a reply without stop texts."""
        self.add(text)

    def finish(self) -> str:
        """The whole text."""
        self._take(self._decoder.decode(b"", final=True))
        self._send(len(self._text))
        return self._text

    def _take(self, text: str) -> None:
        """Blanks in front of a reply belong to the format, not to what is said."""
        self._text += text if self._begun else text.lstrip()
        self._begun = bool(self._text)

    def _send(self, upto: int) -> None:
        if self._emit is not None and upto > self._sent:
            self._emit(self._text[self._sent : upto])
        self._sent = max(self._sent, upto)


def load_chat_model(
    name_or_dir: str | Path,
    name: str,
    dtype: str = "float32",
    device: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    long_prompts: LongPrompts = "refuse",
) -> ChatModel:
    """Any causal language model with its tokenizer, also of an architecture that the engine does not know.

    name: what requests call it. Raises ModelNotLoaded with one line.
    """
    place = str(name_or_dir)
    if dtype not in DTYPES:
        raise ModelNotLoaded(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not Path(place).is_dir() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise ModelNotLoaded(f"model directory {place} does not exist")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotLoaded(f"cannot load the tokenizer of model {place!r}: {_one_line(error)}") from error
    if not tokenizer.get_vocab():
        raise ModelNotLoaded(f"model {place!r} has no tokenizer: a chat is text")
    extra = {} if device_map is None else {"device_map": device_map}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=DTYPES[dtype], trust_remote_code=trust_remote_code, output_loading_info=True, **extra
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelNotLoaded(f"cannot load the weights of model {place!r}: {_one_line(error)}") from error
    model, info = loaded
    if missing := sorted(info.get("missing_keys", ())):
        raise ModelNotLoaded(
            f"model {place!r} has no weight {missing[0]!r} ({len(missing)} missing); it would be random"
        )
    if device_map is None:
        model = model.to(pick_device(device))
    return ChatModel(model.eval(), tokenizer, name, long_prompts)


def _window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many tokens the model can read."""
    config: Any = model.config.get_text_config()
    for key in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        value = getattr(config, key, None)
        if isinstance(value, int) and value > 0:
            return value
    return tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a reply."""
    found: set[int] = set()
    given: Any
    for given in (
        getattr(model.generation_config, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        found |= set(given) if isinstance(given, list | tuple) else set() if given is None else {int(given)}
    return frozenset(found)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
