"""A label with everything that one can hold, all of its texts hostile."""

from __future__ import annotations

from graphs.label import Expectation, Label, Score
from graphs.node import NodeId

HOSTILE = '</svg>]]><script>alert(\'x\')</script> & "quoted" \\N \\" \x00\x1b[31m \u202elive \ud800 <b>\n日本 '


def hostile_label(node: NodeId, passed: bool | None = True) -> Label:
    """The label of a node."""
    expects = Expectation("ablate", "down", None if passed is None else -0.25, passed)
    scores = {"detection": Score(0.8125, 0.7, 0.9, 0.5, 20, 1), '<i on="x">': Score(0.5)}
    return Label(
        node.at(None), "</title><script>\x1b".replace(" ", ""), "promotes", HOSTILE, HOSTILE, f"token:{HOSTILE}",
        ("c1",), HOSTILE, 0.75, False, expects, (HOSTILE,), scores,
    )  # fmt: skip
