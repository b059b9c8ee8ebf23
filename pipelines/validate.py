"""`edgewise validate`: which rows of a task do not fit a model, and how well the model does on the others."""

from __future__ import annotations

from pipelines.clock import Clock
from pipelines.config import RunConfig
from pipelines.inputs import Inputs, read_task


def validate_task(config: RunConfig, rows: int) -> list[str]:
    """The report as lines of text; at most `rows` rows of each kind are named. Raises BadTask for unreadable files."""
    from discovery.validate import report_lines, validate

    inputs = Inputs(config, read_task(config), Clock())
    metric, model = inputs.metric, inputs.model
    spans, alignment = config.task.spans, inputs.alignment()
    report = validate(
        inputs.task, model.tokenizer, model, metric, spans=spans, alignment=alignment, **inputs.tokenisation()
    )
    return report_lines(report, rows)
