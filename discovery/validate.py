"""What a task looks like under a tokenizer and a model: rows that do not fit, and how often the model is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from discovery.batch import Batch
from discovery.batches import Alignment, batch_pairs, default_pad_id, problem_of
from discovery.metrics import METRICS, Metric
from discovery.span_tokens import SpanMode
from discovery.task import BadTask, PromptPair, Task
from discovery.tokenisation import Bos, TokenPair, tokenise_rows, unknown_id
from discovery.turned_batch import turn_round


@runtime_checkable
class RunsPrompts(Protocol):
    """What is needed of a model; every PatchableModel has it."""

    def full_logits(self, batch: Batch) -> Tensor:
        """Logits [read vocab] of the untouched model on the batch's clean prompts."""
        ...


@dataclass(frozen=True)
class Finding:
    """Something about one row."""

    row: int
    """Row in the task's source, from 1."""
    text: str
    """What was found, in a few words."""


KINDS: dict[str, str] = {
    "unusable": "cannot be run",
    "misaligned": "clean and corrupt have different numbers of tokens",
    "unequal": "have another number of tokens than most: --spans positions needs the same of all",
    "identical": "clean and corrupt are the same tokens",
    "duplicate": "the same prompts and answers as an earlier row",
    "unknown": "hold tokens that the tokenizer does not know",
    "apart": "an answer merges with the end of the prompt and is tokenised on its own",
    "several-tokens": "an answer is several tokens",
}
"""Kind of finding -> what it means; the first three keep a row from being run."""


@dataclass(frozen=True)
class SpanUse:
    """Where a span stands in the clean prompts."""

    rows: int
    """Prompts that have it."""
    tokens: tuple[int, int]
    """Its length where it is shortest and where it is longest."""


@dataclass(frozen=True)
class Performance:
    """How a model does on one side of the pairs."""

    accuracy: float | None
    """Share of pairs whose most likely continuation (over the whole vocabulary) is an expected answer, if known."""
    preferred: float | None
    """Share of pairs where the expected answers have the larger mean logit; None where wrong answers are missing."""
    metric: float
    """Mean of the task's metric, with the clean prompt's right and wrong answers on both sides."""


@dataclass(frozen=True)
class Report:
    """What `validate` found."""

    task: str
    """Name of the task."""
    pairs: int
    """Pairs looked at."""
    runnable: int
    """Pairs that can be run."""
    tokens: tuple[int, int] | None
    """Length of the shortest and the longest runnable prompt."""
    spans: Mapping[int | str, SpanUse]
    """Where spans are asked for: those of the runnable pairs' clean prompts, in the order in which they first come."""
    findings: Mapping[str, tuple[Finding, ...]]
    """Kind (a key of `KINDS`) -> rows, in their order; kinds without rows are missing."""
    metric: str
    """Name of the metric."""
    clean: Performance | None = None
    """On the clean prompts; None without a model or runnable pairs."""
    corrupt: Performance | None = None
    """On the corrupt prompts, where the wrong answers (or the task's own corrupt answers) are expected."""


def validate(
    task: Task,
    tokenizer: PreTrainedTokenizerBase | None,
    model: RunsPrompts | None = None,
    metric: Metric | None = None,
    *,
    bos: Bos = "auto",
    chat_template: bool = False,
    max_length: int | None = None,
    vocabulary: int | None = None,
    batch_size: int | Callable[[int], int] = 16,
    spans: SpanMode = "none",
    alignment: Alignment = "tokens",
) -> Report:
    """Looks at every row, and runs the usable ones through the model where one is given.

    metric: default the task's. The other options are those of `discovery.batches.make_batches`: with an alignment other than
    `tokens` prompts of different lengths can be run, and with `spans` a row without usable spans cannot.
    """
    if metric is None:
        metric = METRICS[task.metric]
    pairs, failed = tokenise_rows(task, tokenizer, bos, chat_template, spans)
    findings: dict[str, list[Finding]] = defaultdict(list)
    for row, problem in failed:
        findings["unusable"].append(Finding(row, problem))
    usable: list[TokenPair] = []
    seen: dict[object, int] = {}
    common = Counter(len(pair.clean) for pair in pairs).most_common(1)[0][0] if pairs else 0
    for pair in pairs:
        found = _look_at(pair, tokenizer, max_length, vocabulary, alignment)
        if spans == "positions" and len(pair.clean) != common:
            found["unequal"] = f"{len(pair.clean)} tokens, most have {common}"
        earlier = seen.setdefault((pair.clean, pair.corrupt, pair.right, pair.wrong), pair.row)
        if earlier != pair.row:
            found["duplicate"] = f"as row {earlier}"
        for kind, text in found.items():
            findings[kind].append(Finding(pair.row, text))
        if not {"unusable", "misaligned", "unequal"} & found.keys():
            usable.append(pair)
    lengths = [len(pair.clean) for pair in usable]
    report = Report(
        task.name,
        len(task.pairs),
        len(usable),
        (min(lengths), max(lengths)) if lengths else None,
        _span_uses(usable),
        {kind: tuple(findings[kind]) for kind in KINDS if findings.get(kind)},
        metric.name,
    )
    if model is None or not usable:
        return report
    batches = batch_pairs(usable, batch_size, default_pad_id(tokenizer), by_spans=alignment == "spans")
    clean, corrupt = _perform(model, batches, metric)
    own = _corrupt_pairs(task, [pair.index for pair in usable])
    if own is not None:
        turned = tokenise_rows(own, tokenizer, bos, chat_template)[0]
        fitting = [pair for pair in turned if pair.aligned and problem_of(pair, max_length, vocabulary) is None]
        share = _accuracy(model, batch_pairs(fitting, batch_size, default_pad_id(tokenizer))) if fitting else None
        corrupt = replace(corrupt, accuracy=share, preferred=None)
    return replace(report, clean=clean, corrupt=corrupt)


def _span_uses(pairs: Sequence[TokenPair]) -> dict[int | str, SpanUse]:
    lengths: dict[int | str, list[int]] = defaultdict(list)
    for pair in pairs:
        for name, count in Counter(pair.spans or ()).items():
            lengths[name].append(count)
    return {name: SpanUse(len(counts), (min(counts), max(counts))) for name, counts in lengths.items()}


def _look_at(
    pair: TokenPair,
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    vocabulary: int | None,
    alignment: Alignment,
) -> dict[str, str]:
    """Kind -> what is found, for one row."""
    found: dict[str, str] = {}
    if not pair.aligned and alignment == "tokens":
        found["misaligned"] = f"clean {len(pair.clean)} tokens, corrupt {len(pair.corrupt)}"
    problem = problem_of(pair, max_length, vocabulary)
    if alignment == "spans" and pair.corrupt_spans is None:
        problem = "its prompts differ in length: say where each of its spans is in both ({clean: ..., corrupt: ...})"
    if problem:
        found["unusable"] = problem
    if pair.clean == pair.corrupt:
        found["identical"] = "nothing to trace"
    unknown = unknown_id(tokenizer)
    answers = (*pair.right, *pair.wrong)
    if unknown is not None:
        where = {"clean": [pair.clean], "corrupt": [pair.corrupt], "answers": answers}
        places = [name for name, texts in where.items() if any(unknown in text for text in texts)]
        if places:
            found["unknown"] = f"in {' and '.join(places)}"
    if pair.apart:
        found["apart"] = f"answer {pair.apart[0]!r}" + (f" and {len(pair.apart) - 1} more" if pair.apart[1:] else "")
    longest = pair.longest_answer
    if longest > 1:
        several = sum(len(answer) > 1 for answer in answers)
        found["several-tokens"] = f"{several} of {len(answers)} answers, up to {longest} tokens"
    return found


def _corrupt_pairs(task: Task, indices: Sequence[int]) -> Task | None:
    """The task turned round, with its own answers to the corrupt prompts; None where those are the wrong answers."""
    if task.corrupt_answers is None:
        return None
    pairs, rows, differs = [], [], False
    for index in indices:
        pair = task.pairs[index]
        expected = task.corrupt_answers(pair)
        differs |= expected != pair.wrong_answers
        if expected:
            pairs.append(PromptPair(pair.corrupt, pair.clean, expected, ()))
            rows.append(task.row(index))
    return replace(task, pairs=tuple(pairs), rows=tuple(rows), held_out=()) if differs else None


def _perform(model: RunsPrompts, batches: Sequence[Batch], metric: Metric) -> tuple[Performance, Performance]:
    """On the clean prompts, and on the corrupt ones where the wrong answers are expected."""
    sums = torch.zeros(2, 3, dtype=torch.float64)
    both_kinds, wrong_known = True, True
    for batch in tqdm(batches, desc="runs", unit="batch", leave=False, delay=1):
        reference = None
        for side, turned in enumerate((batch, turn_round(batch))):
            logits = model.full_logits(turned)
            here = turned.to(logits.device)
            expected = here if side == 0 else replace(here, candidate_right=~here.candidate_right)
            if side == 0:
                reference = logits if metric.needs_reference else None
            with torch.no_grad():
                sums[side, 0] += METRICS["accuracy"].compute(logits, expected, None).sum().item()
                sums[side, 2] += metric.compute(logits, here, reference).sum().item()
                try:
                    sums[side, 1] += (METRICS["logit-diff"].compute(logits, expected, None) > 0).sum().item()
                except BadTask:  # a pair without wrong answers
                    both_kinds = False
        wrong_known &= not bool(batch.candidate_right.all())
    means = (sums / sum(map(len, batches))).tolist()
    clean, corrupt = (Performance(hit, better if both_kinds else None, value) for hit, better, value in means)
    return clean, corrupt if wrong_known else replace(corrupt, accuracy=None)


def _accuracy(model: RunsPrompts, batches: Sequence[Batch]) -> float:
    hits = 0.0
    for batch in tqdm(batches, desc="corrupt prompts", unit="batch", leave=False, delay=1):
        logits = model.full_logits(batch)
        hits += METRICS["accuracy"].compute(logits, batch.to(logits.device), None).sum().item()
    return hits / sum(map(len, batches))


def report_lines(report: Report, rows: int = 20) -> list[str]:
    """The report as text, one line each; at most `rows` rows of every kind are named."""
    lines = [f"{report.task}: {report.pairs} pairs, {report.runnable} can be run"]
    if report.tokens is not None:
        low, high = report.tokens
        lines[0] += f" ({low} tokens)" if low == high else f" ({low} to {high} tokens)"
    lines += _span_lines(report)
    for kind, found in report.findings.items():
        lines.append(f"{len(found)} {'row' if len(found) == 1 else 'rows'}: {KINDS[kind]}")
        lines += [f"  row {finding.row}: {finding.text}" for finding in found[:rows]]
        if len(found) > rows:
            lines.append(f"  and {len(found) - rows} more")
    for name, done in (("clean", report.clean), ("corrupt", report.corrupt)):
        if done is not None:
            lines.append(f"{name + ' prompts:':<16} {_performance(done, report.metric)}")
    return lines


def _span_lines(report: Report) -> list[str]:
    """One line for all spans: by position they are as many as tokens, and need no names."""
    if not report.spans:
        return []
    if all(isinstance(name, int) for name in report.spans):
        return [f"spans: {len(report.spans)} positions"]
    parts = []
    for name, use in report.spans.items():
        low, high = use.tokens
        size = f"{low}" if low == high else f"{low} to {high}"
        rows = "" if use.rows == report.runnable else f", in {use.rows} of {report.runnable} prompts"
        parts.append(f"{name} ({size} token{'s' if high > 1 else ''}{rows})")
    return [f"spans: {'; '.join(parts)}"]


def _performance(done: Performance, metric: str) -> str:
    parts = [] if done.accuracy is None else [f"{done.accuracy:.1%} top-1 right"]
    if done.preferred is not None:
        parts.append(f"{done.preferred:.1%} prefer the expected answer")
    return ", ".join([*parts, f"{metric} {done.metric:+.3f}"])
