"""Prompt pairs as token ids: beginning-of-sequence tokens, chat templates, and which tokens an answer is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from discovery.span_tokens import Names, Offsets, SpanMode, spans_of_pair, token_ranges
from discovery.task import BadTask, PromptPair, Range, Task

Bos = Literal["auto", "always", "never"]
Ids = tuple[int, ...]
_CHUNK = 5000  # texts that are encoded in one call, between two steps of the progress bar
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenPair:
    """A prompt pair as token ids."""

    index: int
    """The pair's place in its task, from 0."""
    row: int
    """The pair's row in its source, from 1: what messages name."""
    clean: Ids
    """The prompt."""
    corrupt: Ids
    """The counterfactual; a pair is aligned when it has as many tokens."""
    right: tuple[Ids, ...]
    """The different right answers, each as what follows the prompt."""
    wrong: tuple[Ids, ...]
    """The different wrong answers."""
    apart: tuple[str, ...] = ()
    """Answers that would merge with the prompt's last tokens and were tokenised on their own (see `tokenise`)."""
    spans: Names | None = None
    """The span of each token of the prompt, where there are spans."""
    corrupt_spans: Names | None = None
    """The same for the counterfactual."""

    @property
    def aligned(self) -> bool:
        """Whether clean and corrupt have equally many tokens."""
        return len(self.clean) == len(self.corrupt)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, right or wrong."""
        return max(map(len, (*self.right, *self.wrong)))

    @property
    def first_difference(self) -> int:
        """How many tokens clean and corrupt share at their beginning."""
        pairs = zip(self.clean, self.corrupt)
        return next((i for i, (one, other) in enumerate(pairs) if one != other), len(self.clean))


def tokenise(
    task: Task | Sequence[PromptPair],
    tokenizer: PreTrainedTokenizerBase | None,
    bos: Bos = "auto",
    chat_template: bool = False,
    spans: SpanMode = "none",
) -> tuple[TokenPair, ...]:
    """The pairs of a task as token ids.

    bos: `auto` starts prompts as the tokenizer does by default, `always` puts its BOS token in front, `never` does not.
    Token-id prompts are taken as they are. A prompt that begins with the BOS token gets no second one. With a chat
    template, `auto` leaves the start to the template. An end-of-sequence token is never added.

    An answer's tokens are those that prompt + answer has after the prompt's. Where the two merge (the prompt ends in a
    space or within a number: "... to the year 17" + "33"), the answer is tokenised as it would be after a line break,
    and named in `apart`. An answer that holds the tokenizer's `<unk>` is refused: what the model says of words that it
    cannot tell apart means nothing. spans: what tokens are divided into. Raises BadTask naming the row.
    """
    tokenised, failed = tokenise_rows(task, tokenizer, bos, chat_template, spans)
    for row, problem in failed:
        raise BadTask(f"row {row}: {problem}")
    apart = [pair for pair in tokenised if pair.apart]
    if apart:
        _log.warning(
            "%d of %d pairs have answers that merge with the end of the prompt and were tokenised on their own "
            "(first: row %d, answer %r)",
            *(len(apart), len(tokenised), apart[0].row, apart[0].apart[0]),
        )
    return tokenised


def tokenise_rows(
    task: Task | Sequence[PromptPair],
    tokenizer: PreTrainedTokenizerBase | None,
    bos: Bos = "auto",
    chat_template: bool = False,
    spans: SpanMode = "none",
) -> tuple[tuple[TokenPair, ...], tuple[tuple[int, str], ...]]:
    """As `tokenise`, but rows that cannot be tokenised come back beside the pairs: (row, what is wrong with it)."""
    pairs = task.pairs if isinstance(task, Task) else tuple(task)
    rows = [task.row(i) for i in range(len(pairs))] if isinstance(task, Task) else list(range(1, len(pairs) + 1))
    texts = _Texts(tokenizer, bos, chat_template, pairs, rows)
    tokenised: list[TokenPair] = []
    failed: list[tuple[int, str]] = []
    for index, (row, pair) in enumerate(zip(rows, pairs)):
        try:
            tokenised.append(_SPANNED[spans](texts, pair, texts.pair(index, row, pair)))
        except BadTask as error:
            failed.append((row, str(error)))
    return tuple(tokenised), tuple(failed)


def _without_spans(texts: _Texts, pair: PromptPair, tokens: TokenPair) -> TokenPair:
    return tokens


def _with_positions(texts: _Texts, pair: PromptPair, tokens: TokenPair) -> TokenPair:
    return replace(tokens, spans=tuple(range(len(tokens.clean))), corrupt_spans=tuple(range(len(tokens.corrupt))))


def _with_spans(texts: _Texts, pair: PromptPair, tokens: TokenPair) -> TokenPair:
    """The pair with the spans of its row."""
    counts = len(tokens.clean), len(tokens.corrupt)
    clean, lead = _ranges(texts, pair, "clean", counts[0])
    corrupt, corrupt_lead = _ranges(texts, pair, "corrupt", counts[1])
    names = spans_of_pair(pair, clean, corrupt, counts, (lead, corrupt_lead))
    return replace(tokens, spans=names[0], corrupt_spans=names[1])


def _ranges(
    texts: _Texts, pair: PromptPair, side: Literal["clean", "corrupt"], count: int
) -> tuple[list[tuple[str, Range]], int]:
    """Names with ranges of tokens in one prompt of `count` tokens, and how many tokens stand in front of its text."""
    prompt = pair.clean if side == "clean" else pair.corrupt
    offsets, shift = texts.offsets(prompt) if isinstance(prompt, str) else (None, 0)
    lead = 0
    if offsets is not None:
        offsets = offsets[-count:]  # the template's BOS may have been taken off
        lead = count - len(offsets)
    return token_ranges(pair.spans, side, offsets, shift, lead, count), lead


_SPANNED = {"none": _without_spans, "positions": _with_positions, "task": _with_spans}


class _Texts:
    """All texts of a task, encoded at once (the tokenizers are fast on lists only)."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        bos: Bos,
        chat_template: bool,
        pairs: Sequence[PromptPair],
        rows: Sequence[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.unknown = unknown_id(tokenizer)
        self.bos = bos
        self.chat_template = chat_template
        self.ids: dict[str, Ids] = {}
        self.prompts: dict[str, str] = {}
        wanted: dict[str, None] = {}
        for row, pair in zip(rows, pairs):
            if not isinstance(pair.clean, str):
                if chat_template:
                    raise BadTask(f"row {row}: prompts of token ids cannot be put into a chat template")
                continue
            if tokenizer is None:
                raise BadTask(f"row {row}: the prompts are text but the model has no tokenizer: give token ids")
            clean, corrupt = self._prompt(pair.clean), self._prompt(pair.corrupt)
            wanted.update(dict.fromkeys((clean, corrupt)))
            answers = (*pair.answers, *pair.wrong_answers)
            wanted.update((clean + answer, None) for answer in answers if isinstance(answer, str))
        self._encode(wanted)
        self.start = self._start(next(iter(wanted), ""))

    def _prompt(self, text: str) -> str:
        """The text that the model is given: the chat template's, where one is asked for."""
        if not self.chat_template:
            return text
        if text not in self.prompts:
            assert self.tokenizer is not None
            message = [{"role": "user", "content": text}]
            try:
                rendered = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            except (ValueError, TypeError) as error:
                lines = str(error).splitlines()
                raise BadTask(
                    f"the tokenizer's chat template cannot be used: {lines[0] if lines else error}"
                ) from error
            self.prompts[text] = str(rendered)
        return self.prompts[text]

    def _encode(self, texts: Iterable[str]) -> None:
        new = [text for text in texts if text not in self.ids]
        for start in tqdm(range(0, len(new), _CHUNK), desc="tokens", unit="chunk", leave=False, delay=1):
            assert self.tokenizer is not None
            chunk = new[start : start + _CHUNK]
            encoded: Any = self.tokenizer(chunk, add_special_tokens=False, return_attention_mask=False, verbose=False)
            self.ids.update((text, tuple(ids)) for text, ids in zip(chunk, encoded["input_ids"]))

    def offsets(self, prompt: str) -> tuple[Offsets | None, int]:
        """The characters of every token of a prompt's text, and where in that text the prompt begins.

        None for a tokenizer that does not tell.
        """
        text = self._prompt(prompt)
        if not getattr(self.tokenizer, "is_fast", False):
            return None, 0
        assert self.tokenizer is not None
        encoded: Any = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        shift = text.rfind(prompt)
        if shift < 0:
            raise BadTask(
                "the chat template changes the prompt's text, so that its spans cannot be found: give no spans"
            )
        return [tuple(ends) for ends in encoded["offset_mapping"]], shift

    def _start(self, sample: str) -> Ids:
        """The ids that go in front of every text prompt."""
        if self.tokenizer is None or self.bos == "never":
            return ()
        own = () if self.chat_template else self._own_start(sample)
        if self.bos == "auto":
            return own
        token: Any = self.tokenizer.bos_token_id
        if token is None and not own:
            raise BadTask("bos = always: the tokenizer has no beginning-of-sequence token; use auto or never")
        return own if token is None or token in own else (token,)

    def _own_start(self, sample: str) -> Ids:
        """What the tokenizer puts in front by default."""
        assert self.tokenizer is not None
        if not sample:
            return ()
        encoded: Any = self.tokenizer(sample, return_attention_mask=False, verbose=False)
        full, plain = tuple(encoded["input_ids"]), self.ids[sample]
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return full[:start]
        special = set(self.tokenizer.all_special_ids)
        return full[: next((i for i, token in enumerate(full) if token not in special), 0)]

    def _started(self, ids: Ids) -> Ids:
        if self.bos == "never" and self.chat_template and self.tokenizer is not None:
            return ids[1:] if ids[:1] == (self.tokenizer.bos_token_id,) else ids
        return ids if ids[: len(self.start)] == self.start else self.start + ids

    def pair(self, index: int, row: int, pair: PromptPair) -> TokenPair:
        """One pair as token ids."""
        if not isinstance(pair.clean, str):
            return TokenPair(
                index, row, pair.clean, pair.corrupt, _different(pair.answers), _different(pair.wrong_answers)
            )
        clean, corrupt = self._prompt(pair.clean), self._prompt(pair.corrupt)
        apart: list[str] = []
        right, wrong = (
            _different(self._answer(clean, answer, apart) for answer in answers)
            for answers in (pair.answers, pair.wrong_answers)
        )
        clean_ids, corrupt_ids = self._started(self.ids[clean]), self._started(self.ids[corrupt])
        for name, ids in (("clean", clean_ids), ("corrupt", corrupt_ids)):
            if not ids:
                raise BadTask(f"the {name} prompt has no tokens under this tokenizer")
        return TokenPair(index, row, clean_ids, corrupt_ids, right, wrong, tuple(apart))

    def _answer(self, prompt: str, answer: str | Ids, apart: list[str]) -> Ids:
        """The answer's tokens; it is added to `apart` where they are not those after the prompt's."""
        if not isinstance(answer, str):
            return answer
        before, whole = self.ids[prompt], self.ids[prompt + answer]
        if whole[: len(before)] != before:
            apart.append(answer)
            self._encode(("\n", "\n" + answer))
            before, whole = self.ids["\n"], self.ids["\n" + answer]
        if whole[: len(before)] != before or len(whole) == len(before):
            raise BadTask(
                f"the tokens of answer {answer!r} cannot be told from the prompt's: end the prompt before the space, "
                "begin the answer with it, or give the answer as token ids"
            )
        if self.unknown in whole[len(before) :]:
            raise BadTask(
                f"the model's tokenizer does not know the answer {answer!r}: choose a task in words that the model knows, "
                "or another model"
            )
        return whole[len(before) :]


def unknown_id(tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The id of `<unk>`; None where there is none of its own (GPT-2 names its end-of-text token)."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    return None if unknown in others else unknown


def _different(answers: Iterable[Ids]) -> tuple[Ids, ...]:
    return tuple(dict.fromkeys(answers))
