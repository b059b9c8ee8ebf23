"""Spans from rows and templates to tokens, and prompts laid side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from discovery.batches import MisalignedPair, make_batches
from discovery.demo import model_directory
from discovery.span_alignment import align
from discovery.span_places import spans_of
from discovery.span_tokens import name_tokens
from discovery.task import BadTask, PromptPair, Span
from discovery.task_source import load_task
from discovery.tasks.slots import fill
from discovery.tasks.table import GENERATORS, generate_pairs
from discovery.tokenisation import tokenise

TOKENIZER = AutoTokenizer.from_pretrained(model_directory())


@pytest.mark.parametrize("task", GENERATORS)
def test_built_in_tasks_name_parts_of_their_prompts_and_tokens_hold_them(task: str) -> None:
    pairs = [  # the embedded model does not know the answers of all tasks
        replace(pair, answers=(" Mary",), wrong_answers=(" John",)) for pair in generate_pairs(task, 20)
    ]
    for pair, tokens in zip(pairs, tokenise(pairs, TOKENIZER, spans="task")):
        assert pair.spans
        for names, ids, prompt, side in (
            (tokens.spans, tokens.clean, pair.clean, "clean"),
            (tokens.corrupt_spans, tokens.corrupt, pair.corrupt, "corrupt"),
        ):
            assert names is not None and len(names) == len(ids) and names[0] == "bos"
            offsets = TOKENIZER(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            for span in pair.spans:
                start, stop = getattr(span, side)
                own = [ends for name, ends in zip(names[1:], offsets) if name == span.name]
                assert prompt[own[0][0] : own[-1][1]].strip() == prompt[start:stop]
            assert names[-1] == "end" or names[-1] in {span.name for span in pair.spans}


def test_filled_templates_know_their_slots() -> None:
    filled = fill("{a} and {b:03d}, {a} {{x}}", a="one", b=7)
    assert filled.text == "one and 007, one {x}"
    assert {name: filled.text[slice(*place)] for name, place in filled.slots.items()} == {
        "a": "one",
        "b": "007",
        "a2": "one",
    }


def test_every_token_belongs_to_one_span() -> None:
    names = name_tokens([("x", (6, 7)), ("y", (2, 4))], 10, lead=1)
    assert names == ("bos", "start", "y", "y", "after_y", "after_y", "x", "after_x", "after_x", "end")
    assert name_tokens([("x", (0, 1)), ("y", (1, 3))], 3, lead=0) == ("x", "y", "y")


def test_equal_spans_are_aligned_token_by_token() -> None:
    names = ("bos", "start", "start", "name", "after_name", "end")
    assert torch.equal(align(names, names), torch.eye(6))


def test_unequal_spans_are_aligned_from_the_right_and_the_rest_takes_the_mean() -> None:
    clean = ("bos", "name", "name", "name", "after_name", "end")
    corrupt = ("bos", "name", "name", "end")
    weights = align(clean, corrupt)
    assert torch.allclose(weights.sum(1), torch.ones(6))
    expected = [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0.25] * 4, [0, 0, 0, 1]]
    assert torch.equal(weights, torch.tensor(expected))
    shorter = align(corrupt, clean)
    assert torch.equal(shorter[1:3, 1:4], torch.tensor([[0.0, 1, 0], [0, 0, 1]]))


def _task(folder: Path, **fields: object) -> Path:
    row = {"clean": "The capital of France is", "corrupt": "The capital of Spain is", "answers": [" Paris"]}
    path = folder / "task.jsonl"
    path.write_text(json.dumps({**row, **fields}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "spans",
    [
        {"place": "France"},
        {"place": [15, 21]},
        {"place": {"tokens": [3, 4]}},
        {"place": {"clean": "France", "corrupt": "Spain"}},
    ],
    ids=["text", "characters", "tokens", "both"],
)
def test_a_file_names_spans(tmp_path: Path, spans: object) -> None:
    tokens = tokenise(load_task(_task(tmp_path, spans=spans)), TOKENIZER, spans="task")[0]
    assert tokens.spans == tokens.corrupt_spans == ("bos", "start", "start", "start", "place", "end")


def test_a_csv_file_and_a_column_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "task.csv"
    path.write_text('clean,corrupt,answers,parts\n"[5, 6, 7]","[5, 8, 7]",9,"{""x"": [1, 2]}"\n', encoding="utf-8")
    pair = load_task(path, columns={"spans": "parts"}).pairs[0]
    assert pair.spans == (Span("x", (1, 2), unit="tokens"),)
    assert tokenise([pair], None, spans="task")[0].spans == ("start", "x", "end")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"place": "e"}, "'e' stands 2 times in the clean prompt"),
        ({"place": "Rome"}, "'Rome' stands 0 times"),
        ({"place": [3]}, "is no place"),
        ({"place": [3, 3]}, "is no range"),
        ({"place": [3, 99]}, "lies outside the clean prompt"),
        ({"place": {"clean": "France"}}, "give its place in the corrupt prompt"),
        ({"end": "is"}, "'end' is taken"),
        ({"after_x": "is"}, "'after_x' is taken"),
        ({"a b": "is"}, "'a b' is no name"),
        ({"x": [4, 11], "y": "capital of"}, "spans 'x' and 'y' overlap"),
        (["France"], "must be an object"),
    ],
    ids=lambda value: None if isinstance(value, str) else "spans",
)
def test_bad_spans_are_named_with_their_row(tmp_path: Path, spans: object, message: str) -> None:
    with pytest.raises(BadTask, match="row 1") as error:
        load_task(_task(tmp_path, spans=spans))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_spans_that_tokens_do_not_fit_are_refused() -> None:
    ids = {"answers": ((9,),), "wrong_answers": ()}
    outside = PromptPair(
        (5, 6), (5, 7), **ids, spans=(Span("x", (0, 1), (0, 1), "tokens"), Span("y", (1, 2), None, "tokens"))
    )
    assert tokenise([outside], None, spans="task")[0].spans == ("x", "y")
    with pytest.raises(BadTask, match="row 1: this pair has no spans"):
        tokenise([PromptPair((5, 6), (5, 7), **ids)], None, spans="task")
    both = PromptPair("The capital is", "The capital is", (" a",), (), (Span("x", (4, 6)), Span("y", (6, 11))))
    with pytest.raises(BadTask, match="'y' has no token of its own in the clean prompt"):
        tokenise([both], TOKENIZER, spans="task")


def test_unequal_prompts_need_both_places_or_an_ablation_that_needs_neither() -> None:
    pair = PromptPair((5, 6, 7), (5, 7), ((9,),), (), (Span("x", (1, 2), None, "tokens"),))
    options = {"batch_size": 4, "spans": "task"}
    with pytest.raises(MisalignedPair, match="row 1: its prompts have 3 and 2 tokens"):
        make_batches([pair], None, **options, alignment="spans")
    with pytest.raises(MisalignedPair, match="different numbers of tokens"):
        make_batches([pair], None, **options)
    (batch,) = make_batches([pair], None, **options, alignment="none")
    assert batch.corrupt.tolist() == [[5, 7]] and batch.alignment is None
    assert batch.corrupt_mask is not None and batch.corrupt_mask.all()


def test_spans_of_batches_stand_in_the_prompts_order_and_see_what_is_before_them() -> None:
    pairs = [
        PromptPair((5, 6, 7, 8), (5, 6, 6, 8), ((9, 3),), (), (Span("x", (1, 2), None, "tokens"),)),
        PromptPair((5, 7, 8), (5, 6, 8), ((9,),), (), (Span("x", (0, 1), None, "tokens"),)),
    ]
    spans = spans_of(make_batches(pairs, None, batch_size=1, spans="task"))
    assert spans.names == ("start", "x", "after_x", "end", "answer_tokens")
    assert spans.sees.tolist() == [[b <= a for b in range(5)] for a in range(5)]
    assert spans.read.tolist() == [False, False, False, True, True]


def test_positions_need_prompts_of_one_length() -> None:
    pairs = [PromptPair((5, 6), (5, 7), ((9,),), ()), PromptPair((5, 6, 7), (5, 7, 7), ((9,),), ())]
    with pytest.raises(BadTask, match="2 to 3 tokens"):
        make_batches(pairs, None, batch_size=2, spans="positions")
    spans = spans_of(make_batches(pairs[1:], None, batch_size=2, spans="positions"))
    assert spans.names == (0, 1, 2) and spans.read.tolist() == [False, False, True]
