"""Our own rows: clean, corrupt, answers, wrong_answers, spans; and any file whose columns are mapped to these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from discovery.task import PromptPair
from discovery.task_formats.row import Row, TaskFormat
from discovery.task_formats.spans import read_spans

FIELDS: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "clean_prefix"),
    "corrupt": ("corrupt", "corrupted", "patch_prefix"),
    "answers": ("answers", "answer", "clean_answer"),
    "wrong_answers": ("wrong_answers", "wrong_answer", "patch_answer"),
    "spans": ("spans",),
}
"""Our fields, and the columns that may hold them, the first one found counts."""


def column_of(field: str, row: Row) -> str:
    """The first of the field's usual columns that the row has, else the field's own name."""
    return next((name for name in FIELDS[field] if name in row.values), field)


def read_fields(row: Row, columns: Mapping[str, str]) -> PromptPair:
    """A pair from the row's columns; `columns` (field -> column) goes before the usual names."""

    def place(field: str) -> str:
        return columns.get(field) or column_of(field, row)

    clean, corrupt = row.prompt(place("clean")), row.prompt(place("corrupt"))
    as_ids = not isinstance(clean, str)
    wrong = place("wrong_answers")
    has_wrong = "wrong_answers" in columns or wrong in row.values
    spans = place("spans")
    has_spans = "spans" in columns or row.values.get(spans) not in (None, "", {})
    return PromptPair(
        clean,
        corrupt,
        row.answers(place("answers"), as_ids),
        row.answers(wrong, as_ids) if has_wrong else (),
        read_spans(row, spans, clean, corrupt) if has_spans else (),
    )


def read(row: Row, options: Mapping[str, Any]) -> PromptPair:
    """One row in our own format."""
    return read_fields(row, {})


OWN = TaskFormat(
    description="edgewise: clean, corrupt (or corrupted), answers (or answer), wrong_answers (or wrong_answer), spans",
    columns=(("clean",), ("corrupt", "corrupted"), ("answers", "answer")),
    read=read,
)
