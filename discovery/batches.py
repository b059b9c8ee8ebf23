"""Tokenised pairs as batches: rows padded on the left, like lengths together, and the places where answers are read."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from discovery.batch import Batch, positions_of
from discovery.span_alignment import align_rows, number_spans, span_names
from discovery.span_tokens import Names, SpanMode
from discovery.task import BadTask, PromptPair, Task
from discovery.tokenisation import Bos, Ids, TokenPair, tokenise

Misaligned = Literal["error", "drop"]
Alignment = Literal["tokens", "spans", "none"]
"""How tokens of the corrupt prompt answer to those of the clean one: one to one, span by span, or not at all."""
_NAMED = 5  # rows that an error names before it says "and N more"
_log = logging.getLogger(__name__)


class MisalignedPair(BadTask):
    """Clean and corrupt prompts with different numbers of tokens, so that no position of one answers to the other."""


def make_batches(
    task: Task | Sequence[PromptPair],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    batch_size: int | Callable[[int], int],
    bos: Bos = "auto",
    chat_template: bool = False,
    pad_id: int | None = None,
    max_length: int | None = None,
    vocabulary: int | None = None,
    misaligned: Misaligned = "error",
    spans: SpanMode = "none",
    alignment: Alignment = "tokens",
) -> tuple[Batch, ...]:
    """The pairs of a task as batches on the CPU; `Batch.indices` says which pair is where.

    batch_size: pairs in a batch, or a function of the tokens that a pair takes (rows x length) that gives them.
    bos, chat_template, and which tokens an answer is: see `discovery.tokenisation.tokenise`. pad_id: fills up short
    rows, where nothing looks (default: the tokenizer's padding or end token, else 0). max_length: tokens that the
    model takes. vocabulary: number of its tokens. misaligned: `drop` leaves out pairs whose prompts differ in length,
    and logs how many. spans: what tokens are divided into. alignment: `tokens` needs prompts of equal length, the others do
    not. Raises MisalignedPair or BadTask naming the rows.
    """
    tokenised = tokenise(task, tokenizer, bos, chat_template, spans)
    usable = check_pairs(
        tokenised, max_length=max_length, vocabulary=vocabulary, misaligned=misaligned, alignment=alignment
    )
    if spans == "positions":
        _check_equal_lengths(usable)
    pad_id = default_pad_id(tokenizer) if pad_id is None else pad_id
    return batch_pairs(usable, batch_size, pad_id, by_spans=alignment == "spans")


def _check_equal_lengths(pairs: Sequence[TokenPair]) -> None:
    lengths = {len(pair.clean) for pair in pairs}
    if len(lengths) > 1:
        raise BadTask(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens: with --spans positions all must have the same number "
            "(--spans task names parts of prompts instead)"
        )


def default_pad_id(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The tokenizer's padding token, else its end token, else 0."""
    known = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    return next((int(token) for token in known if token is not None), 0)


def model_limits(config: PretrainedConfig) -> tuple[int | None, int | None]:
    """(tokens that a model takes at most, size of its vocabulary), by its configuration; None where it says nothing."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None), getattr(text, "vocab_size", None)


def check_pairs(
    pairs: Sequence[TokenPair],
    *,
    max_length: int | None = None,
    vocabulary: int | None = None,
    misaligned: Misaligned = "error",
    alignment: Alignment = "tokens",
) -> tuple[TokenPair, ...]:
    """The pairs that can be run. Raises MisalignedPair (unless they are to be dropped) or BadTask naming rows."""
    apart = [pair for pair in pairs if not pair.aligned and alignment == "tokens"]
    if apart and misaligned == "error":
        named = ", ".join(f"row {pair.row} ({len(pair.clean)} and {len(pair.corrupt)})" for pair in apart[:_NAMED])
        more = f" and {len(apart) - _NAMED} more" if len(apart) > _NAMED else ""
        raise MisalignedPair(
            f"clean and corrupt prompts have different numbers of tokens: {named}{more}; change them or use "
            "--misaligned drop (an ablation such as mean, and --spans task, take prompts of any length)"
        )
    for pair in pairs if alignment == "spans" else ():
        if pair.corrupt_spans is None:
            raise MisalignedPair(
                f"row {pair.row}: its prompts have {len(pair.clean)} and {len(pair.corrupt)} tokens: say where each of its "
                "spans is in both ({clean: ..., corrupt: ...})"
            )
    usable = tuple(pair for pair in pairs if pair.aligned or alignment != "tokens")
    if apart:
        _log.warning("%d of %d pairs left out: their prompts differ in length", len(apart), len(pairs))
    if not usable:
        raise MisalignedPair("no pairs to run: all of them are misaligned") if apart else BadTask("no pairs to run")
    for pair in usable:
        problem = problem_of(pair, max_length, vocabulary)
        if problem:
            raise BadTask(f"row {pair.row}: {problem}")
    return usable


def problem_of(pair: TokenPair, max_length: int | None = None, vocabulary: int | None = None) -> str | None:
    """Why an aligned pair cannot be run, in one line; None where it can."""
    length = _length(pair)
    if max_length is not None and length > max_length:
        return (
            f"prompt and answer take {length} tokens, the model at most {max_length}: shorten them or leave the row out"
        )
    both = set(pair.right) & set(pair.wrong)
    if both:
        return f"a right and a wrong answer are the same tokens {min(both)}: change one of them"
    if vocabulary is not None:
        largest = max(max(ids) for ids in (pair.clean, pair.corrupt, *pair.right, *pair.wrong))
        if largest >= vocabulary:
            return f"token id {largest} is not in the model's vocabulary (0 to {vocabulary - 1})"
    return None


@dataclass(frozen=True)
class _Layout:
    """How a pair's answers are read: which rows it needs and where each next token stands."""

    rows: tuple[Ids, ...]
    """What stands after the prompt in each row; no row is the beginning of another."""
    place: dict[Ids, tuple[int, int]]
    """Beginning of an answer -> (row, columns from the right end) of the read that predicts the token after it."""


def _lay_out(pair: TokenPair) -> _Layout:
    endings = dict.fromkeys(answer[:-1] for answer in (*pair.right, *pair.wrong))
    begun = {ending[:k] for ending in endings for k in range(len(ending))}
    rows = tuple(ending for ending in endings if ending not in begun)
    place: dict[Ids, tuple[int, int]] = {}
    for number, row in enumerate(rows):
        for k in range(len(row) + 1):
            place.setdefault(row[:k], (number, len(row) - k))
    return _Layout(rows, place)


def batch_pairs(
    pairs: Sequence[TokenPair], batch_size: int | Callable[[int], int], pad_id: int = 0, by_spans: bool = False
) -> tuple[Batch, ...]:
    """Pairs as batches on the CPU. by_spans: align prompts by their spans, where these are not the same tokens.

    Like lengths and like shared beginnings go together, so that little is padded and much of the beginning is shared.
    Pairs whose prompts are not aligned token by token have batches of their own. The batches are shuffled, always in the
    same way, so that any few of them are a fair sample.
    """
    if isinstance(batch_size, int) and batch_size < 1:
        raise BadTask(f"batch size must be at least 1, not {batch_size}")
    # Longest first: their batch decides how many fit, and an odd rest is short.
    order = sorted(pairs, key=lambda pair: (-_length(pair), pair.first_difference - len(pair.clean), pair.index))
    batches: list[Batch] = []
    for matched in (True, False):
        left = [pair for pair in order if _matched(pair, by_spans) == matched]
        while left:
            size = batch_size if isinstance(batch_size, int) else _fitting(left, batch_size)
            batches.append(_Builder(left[:size]).build(pad_id, None if matched else by_spans))
            left = left[size:]
    random.Random(0).shuffle(batches)
    return tuple(batches)


def _length(pair: TokenPair) -> int:
    return max(len(pair.clean), len(pair.corrupt)) + pair.longest_answer - 1


def _matched(pair: TokenPair, by_spans: bool) -> bool:
    """Whether each token of the clean prompt answers to the one of the same number in the corrupt prompt."""
    return pair.aligned and not (by_spans and pair.spans != pair.corrupt_spans)


def _fitting(order: Sequence[TokenPair], batch_size: Callable[[int], int]) -> int:
    """How many of the pairs (longest first) go into one batch: no more than fit with the widest of them."""
    longest = _length(order[0])
    size = max(1, batch_size(longest * len(_lay_out(order[0]).rows)))
    most_rows = max(len(_lay_out(pair).rows) for pair in order[:size])
    return max(1, min(size, batch_size(longest * most_rows)))


@dataclass
class _Builder:
    """Collects the rows, reads and candidates of some pairs."""

    pairs: Sequence[TokenPair]
    clean: list[Ids] = field(default_factory=list)
    corrupt: list[Ids] = field(default_factory=list)
    row_pair: list[int] = field(default_factory=list)
    reads: list[tuple[int, int]] = field(default_factory=list)
    pair_read: list[int] = field(default_factory=list)
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    candidates: list[tuple[int, bool]] = field(default_factory=list)
    spans: list[Names] = field(default_factory=list)
    corrupt_spans: list[Names] = field(default_factory=list)

    def build(self, pad_id: int, by_spans: bool | None) -> Batch:
        """The batch. by_spans: None where clean and corrupt have the same columns, else whether spans align them."""
        for number, pair in enumerate(self.pairs):
            self._add(number, pair)
        width = max(map(len, self.clean))
        corrupt_width = max(map(len, self.corrupt))
        mask = _real(self.clean, width)
        names = span_names((*self.spans, *self.corrupt_spans))
        known = len(self.corrupt_spans) == len(self.corrupt)
        steps, candidates = torch.tensor(self.steps), torch.tensor(self.candidates)
        reads = torch.tensor(self.reads)
        return Batch(
            clean=_padded(self.clean, width, pad_id),
            corrupt=_padded(self.corrupt, corrupt_width, pad_id),
            mask=mask,
            positions=positions_of(mask),
            row_pair=torch.tensor(self.row_pair),
            read_row=reads[:, 0],
            read_column=width - 1 - reads[:, 1],
            pair_read=torch.tensor(self.pair_read),
            step_read=steps[:, 0],
            step_token=steps[:, 1],
            step_candidate=steps[:, 2],
            candidate_pair=candidates[:, 0],
            candidate_right=candidates[:, 1].bool(),
            indices=tuple(pair.index for pair in self.pairs),
            spans=number_spans(self.spans, names, width) if self.spans else None,
            span_names=names,
            corrupt_spans=number_spans(self.corrupt_spans, names, corrupt_width) if known else None,
            corrupt_mask=None if by_spans is None else _real(self.corrupt, corrupt_width),
            alignment=align_rows(self.spans, self.corrupt_spans, width, corrupt_width) if by_spans else None,
        )

    def _add(self, number: int, pair: TokenPair) -> None:
        layout, first_row = _lay_out(pair), len(self.clean)
        for ending in layout.rows:
            self.clean.append(pair.clean + ending)
            self.corrupt.append(pair.corrupt + ending)
            self.row_pair.append(number)
            if pair.spans is not None:
                self.spans.append(_continued(pair.spans, len(ending)))
            if pair.corrupt_spans is not None:
                self.corrupt_spans.append(_continued(pair.corrupt_spans, len(ending)))
        read_of: dict[Ids, int] = {}

        def read(beginning: Ids) -> int:
            if beginning not in read_of:
                row, from_end = layout.place[beginning]
                read_of[beginning] = len(self.reads)
                self.reads.append((first_row + row, from_end))
            return read_of[beginning]

        self.pair_read.append(read(()))
        for answers, is_right in ((pair.right, True), (pair.wrong, False)):
            for answer in answers:
                self.steps += [(read(answer[:k]), token, len(self.candidates)) for k, token in enumerate(answer)]
                self.candidates.append((number, is_right))


def _continued(spans: Names, more: int) -> Names:
    """The spans of a prompt with some tokens of an answer behind it."""
    if isinstance(spans[-1], int):
        return (*spans, *(spans[-1] + 1 + step for step in range(more)))
    return (*spans, *["answer_tokens"] * more)


def _real(rows: Sequence[Ids], width: int) -> Bool[Tensor, "row pos"]:
    return torch.arange(width) >= width - torch.tensor([len(row) for row in rows])[:, None]


def _padded(rows: Sequence[Ids], width: int, pad_id: int) -> Int[Tensor, "row pos"]:
    return torch.tensor([(pad_id,) * (width - len(row)) + row for row in rows])
