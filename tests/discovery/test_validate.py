"""Validation: each kind of trouble is found in its row, and the model's accuracy is what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from discovery.batch import Batch
from discovery.batches import make_batches, model_limits
from discovery.metrics import METRICS
from discovery.task import PromptPair, Range, Span, Task
from discovery.task_source import load_task
from discovery.turned_batch import turn_round
from discovery.validate import KINDS, report_lines, validate

VOCABULARY = {"<unk>": 0, "he": 1, "she": 2, "is": 3, "so": 4, "tall": 5, "small": 6}


class Untouched:
    """A Hugging Face model as `validate` sees it."""

    def __init__(self, directory: Path) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.batches: list[int] = []

    def full_logits(self, batch: Batch) -> Tensor:
        self.batches.append(len(batch))
        with torch.no_grad():
            out = self.hf(batch.clean, attention_mask=batch.mask.long(), position_ids=batch.positions)
        return out.logits[batch.read_row, batch.read_column]


class SaysNext:
    """A model that is sure that the token after `n` is `n + 1`."""

    def full_logits(self, batch: Batch) -> Tensor:
        last = batch.clean[batch.read_row, batch.read_column]
        return torch.nn.functional.one_hot(last + 1, 50).float() * 9


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def test_every_kind_of_row_is_found(words: PreTrainedTokenizerFast) -> None:
    rows = {
        "fine": PromptPair("he is", "she is", (" tall",), (" small",)),
        "duplicate": PromptPair("he  is", "she is", (" tall",), (" small",)),
        "misaligned": PromptPair("he is", "she is so", (" tall",), (" small",)),
        "several-tokens": PromptPair("he is", "she is", (" so tall",), (" small",)),
        "unknown": PromptPair("he is", "bob is", (" tall",), (" small",)),
        "identical": PromptPair("he is", "he is", (" tall",), (" small",)),
        "unusable": PromptPair("he is", "she is", (" tall",), ("  tall",)),
        "empty": PromptPair("he is so", "she is so", (" ",), (" tall",)),
        "long": PromptPair("he is so so so", "she is so so so", (" tall",), (" small",)),
    }
    task = Task("people", tuple(rows.values()), rows=tuple(range(11, 20)))
    report = validate(task, words, max_length=4)
    found = {kind: [finding.row for finding in findings] for kind, findings in report.findings.items()}
    at = {name: 11 + number for number, name in enumerate(rows)}
    assert found == {
        "unusable": [at["empty"], at["unusable"], at["long"]],
        **{kind: [at[kind]] for kind in KINDS if kind in rows and kind != "unusable"},
    }
    assert (report.pairs, report.runnable, report.tokens) == (9, 5, (2, 2))
    assert (report.clean, report.corrupt) == (None, None)
    lines = report_lines(report)
    assert lines[0] == "people: 9 pairs, 5 can be run (2 tokens)"
    assert "  row 13: clean 2 tokens, corrupt 3" in lines
    assert f"1 row: {KINDS['misaligned']}" in lines


def test_long_lists_are_cut(words: PreTrainedTokenizerFast) -> None:
    task = Task("people", (PromptPair("he is", "she is so", (" tall",), (" small",)),) * 9)
    report = validate(task, words)
    lines = report_lines(report, rows=2)
    assert lines[:4] == [
        "people: 9 pairs, 0 can be run",
        f"9 rows: {KINDS['misaligned']}",
        "  row 1: clean 2 tokens, corrupt 3",
        "  row 2: clean 2 tokens, corrupt 3",
    ]
    assert lines[4] == "  and 7 more"
    assert validate(task, words, SaysNext()).clean is None  # nothing to run


def test_accuracy_on_both_sides() -> None:
    pairs = (
        PromptPair((1, 3), (1, 8), ((4,),), ((9,),)),  # right, and the corrupt prompt leads to the wrong answer
        PromptPair((1, 3), (1, 8), ((4,), (6,)), ((7,),)),  # right; the corrupt prompt leads elsewhere
        PromptPair((1, 3), (1, 8), ((6,),), ((9,),)),  # not right
        PromptPair((1, 3), (1, 8), ((4, 5),), ((9, 10, 11),)),  # right in both of its steps
    )
    report = validate(Task("next", pairs), None, SaysNext(), batch_size=3)
    assert report.clean is not None
    assert report.corrupt is not None
    assert (report.clean.accuracy, report.corrupt.accuracy) == (0.75, 0.75)
    assert report.clean.preferred == 0.75
    assert report.metric == "logit-diff"
    assert report.clean.metric > 0 > report.corrupt.metric


def test_tasks_may_know_better_what_the_corrupt_prompt_asks_for() -> None:
    pairs = (PromptPair((1, 3), (1, 8), ((4,),), ((5,),)),)
    plain = validate(Task("t", pairs), None, SaysNext())
    told = validate(Task("t", pairs, corrupt_answers=lambda pair: ((9,), (10,))), None, SaysNext())
    assert plain.corrupt is not None
    assert told.corrupt is not None
    assert (plain.corrupt.accuracy, told.corrupt.accuracy) == (0.0, 1.0)
    assert plain.corrupt.metric == told.corrupt.metric


def test_without_wrong_answers() -> None:
    task = Task("t", (PromptPair((1, 3), (1, 8), ((4,),), ()),), metric="log-prob")
    report = validate(task, None, SaysNext())
    assert report.clean is not None
    assert report.corrupt is not None
    assert (report.clean.accuracy, report.clean.preferred) == (1.0, None)
    assert (report.corrupt.accuracy, report.corrupt.preferred) == (None, None)
    assert report_lines(report)[-1].startswith("corrupt prompts: log-prob -")


@pytest.mark.parametrize(
    ("model", "file", "clean", "corrupt", "top"),
    [
        ("stories260K", "stories_pronouns", 4.106, -4.142, 0.933),
        ("nano-sort", "nano_sort_first", 9.936, -9.908, 1.0),
        ("nano-sort", "nano_sort_later", 10.230, -10.197, 1.0),
        ("modadd113", "modadd113", 25.579, -25.386, 1.0),
    ],
)
def test_the_published_numbers_of_the_shared_tasks(
    shared: Path, model: str, file: str, clean: float, corrupt: float, top: float
) -> None:
    directory = shared / "models" / model
    tokenizer = AutoTokenizer.from_pretrained(directory) if (directory / "tokenizer.json").exists() else None
    untouched = Untouched(directory)
    length, vocabulary = model_limits(untouched.hf.config)
    task = load_task(shared / f"tasks/{file}.jsonl")
    report = validate(task, tokenizer, untouched, max_length=length, vocabulary=vocabulary, batch_size=64)
    assert not set(report.findings) - {"duplicate"}
    assert report.clean is not None
    assert report.corrupt is not None
    assert report.clean.metric == pytest.approx(clean, abs=6e-4)
    assert report.corrupt.metric == pytest.approx(corrupt, abs=6e-4)
    assert report.clean.accuracy == pytest.approx(top, abs=6e-4)
    assert (report.clean.preferred, report.corrupt.preferred) == (1.0, 1.0)
    assert sum(untouched.batches) == 2 * len(task)


def test_other_metrics_are_measured_on_request(shared: Path) -> None:
    untouched = Untouched(shared / "models/nano-sort")
    task = load_task(shared / "tasks/nano_sort_first.jsonl", limit=40)
    report = validate(task, None, untouched, METRICS["kl"])
    assert report.metric == "kl"
    assert report.clean is not None
    assert report.corrupt is not None
    assert report.clean.metric == pytest.approx(0, abs=1e-6)
    assert report.corrupt.metric < -1


def spanned(clean: tuple[int, ...], corrupt: tuple[int, ...], name: Range, other: Range | None) -> PromptPair:
    return PromptPair(clean, corrupt, ((3,),), ((4,),), spans=(Span("name", name, other, "tokens"),))


def test_spans_make_prompts_of_unequal_length_runnable_and_say_where_they_stand() -> None:
    pairs = (
        spanned((5, 6, 7), (5, 8, 8, 7), (1, 2), (1, 3)),
        spanned((5, 6, 6, 7), (5, 8, 7), (1, 3), (1, 2)),
        spanned((9, 5, 6, 2), (9, 5, 8, 7), (2, 3), None),
        spanned((5, 6, 7), (5, 8, 8, 7), (1, 2), None),
        PromptPair((5, 6, 7), (5, 8, 7), ((3,),), ((4,),)),
    )
    task = Task("names", pairs)
    plain = validate(task, None, SaysNext(), batch_size=2)
    assert [finding.row for finding in plain.findings["misaligned"]] == [1, 2, 4]
    report = validate(task, None, SaysNext(), batch_size=2, spans="task", alignment="spans")
    assert [finding.row for finding in report.findings["unusable"]] == [5, 4]
    assert "misaligned" not in report.findings
    assert report.runnable == 3
    assert {name: (use.rows, use.tokens) for name, use in report.spans.items()} == {
        "start": (3, (1, 2)),
        "name": (3, (1, 2)),
        "end": (3, (1, 1)),
    }
    assert "spans: start (1 to 2 tokens); name (1 to 2 tokens); end (1 token)" in report_lines(report)
    # 7 is followed by 8 and 2 by 3: one clean prompt of three ends in what makes its answer likely, no corrupt one does.
    assert report.clean is not None and report.clean.accuracy == pytest.approx(1 / 3)
    assert report.corrupt is not None and report.corrupt.accuracy == 0


def test_positions_as_spans_need_prompts_of_one_length() -> None:
    pairs = [PromptPair((5, 6, 7)[:n], (5, 8, 7)[:n], ((3,),), ((4,),)) for n in (3, 2, 3)]
    report = validate(Task("some", tuple(pairs)), None, spans="positions")
    assert [finding.row for finding in report.findings["unequal"]] == [2]
    assert report.runnable == 2
    assert "spans: 3 positions" in report_lines(report)


def test_a_batch_turned_round_twice_is_itself() -> None:
    pairs = [
        spanned((5, 6, 7), (5, 8, 8, 7), (1, 2), (1, 3)),
        spanned((5, 6, 6, 7, 9), (5, 8, 7, 9), (1, 3), (1, 2)),
    ]
    (batch,) = make_batches(pairs, None, batch_size=2, spans="task", alignment="spans")
    there = turn_round(batch)
    flipped = [replace(pair, clean=pair.corrupt, corrupt=pair.clean, spans=tuple(
        replace(span, clean=span.corrupt or span.clean, corrupt=span.clean) for span in pair.spans
    )) for pair in pairs]  # fmt: skip
    (expected,) = make_batches(flipped, None, batch_size=2, spans="task", alignment="spans")
    order = [expected.indices.index(index) for index in there.indices]
    back = turn_round(there)
    for name in ("clean", "corrupt", "mask", "positions", "alignment", "corrupt_mask"):
        assert torch.equal(getattr(there, name), getattr(expected, name)[order]), name
        assert torch.equal(getattr(back, name), getattr(batch, name)), name
    assert torch.equal(there.read_column, expected.read_column[order])
    assert torch.equal(back.read_column, batch.read_column)
