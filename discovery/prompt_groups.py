"""Which of a task's prompts are alike: by their right answers, or by a column of the task's file. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Hashable

from discovery.task import BadTask, Task
from discovery.task_files import read_rows
from discovery.tasks.table import GENERATORS

ANSWER = "answer"
"""The name of the grouping by right answers."""


def group_prompts(task: Task, source: str, by: str) -> dict[int, Hashable]:
    """For each pair of the task (0, 1, ...) what its group is known by: equal values are one group.

    source: where the task was read from. by: `answer`, or a column of that file (`a.b` is field b of column a). Raises
    BadTask for a built-in task, which has no columns, and where a row lacks the column.
    """
    if by == ANSWER:
        return {number: frozenset(pair.answers) for number, pair in enumerate(task.pairs)}
    if source in GENERATORS:
        raise BadTask(f"{source} is a built-in task and has no column {by!r}: group by {ANSWER}, or use a task file")
    wanted = {task.row(number): number for number in range(len(task))}
    found: dict[int, Hashable] = {}
    for row in read_rows(source):
        if row.number in wanted:
            found[wanted.pop(row.number)] = json.dumps(row.value(by), sort_keys=True, default=str)
        if not wanted:
            break
    return found
