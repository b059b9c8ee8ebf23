"""Arithmetic: sums and differences of two numbers (after the arithmetic tasks of MIB, Mueller et al. 2025)."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split
from discovery.tasks.slots import fill, spanned_pair

LARGEST = 49
"""Largest operand."""
TEMPLATES: dict[str, tuple[str, ...]] = {
    "addition": ("The sum of {x} and {y} is", "Q: How much is {x} plus {y}? A:", "{x} + {y} ="),
    "subtraction": ("The difference between {x} and {y} is", "Q: How much is {x} minus {y}? A:", "{x} - {y} ="),
}
OPERATORS: tuple[str, ...] = tuple(TEMPLATES)


def _result(x: int, y: int, operator: str) -> int:
    return x + y if operator == "addition" else x - y


def _operands(rng: random.Random, split: Split, operator: str) -> tuple[int, int]:
    """Two numbers of `split` that give a result of the same number of digits, 10 or more, as every other draw."""
    while True:
        x, y = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
        # Two-digit operands and results only, so that prompts align whatever a tokenizer does with digits.
        if min(x, y) < 10 or not 10 <= _result(x, y, operator) <= 99:
            continue
        if in_split(split, "arithmetic", operator, str(x), str(y)):
            return x, y


def draw(rng: random.Random, split: Split, operator: str = "addition") -> PromptPair:
    """One pair: the corrupt prompt has other operands and another result."""
    if operator not in TEMPLATES:
        raise BadTaskOption(f"arithmetic has no operator {operator!r}: use one of {', '.join(OPERATORS)}")
    template = rng.choice(TEMPLATES[operator])
    (x, y), (other_x, other_y) = _operands(rng, split, operator), _operands(rng, split, operator)
    right, wrong = _result(x, y, operator), _result(other_x, other_y, operator)
    if right == wrong:
        return draw(rng, split, operator)
    clean, corrupt = fill(template, x=x, y=y), fill(template, x=other_x, y=other_y)
    return spanned_pair(clean, corrupt, (f" {right}",), (f" {wrong}",))


def generate(count: int, seed: int, split: Split, operator: str = "addition") -> list[PromptPair]:
    """`count` different pairs; `operator` is `addition` or `subtraction`."""
    return distinct_pairs(lambda rng: draw(rng, split, operator), count, seed, split)


ARITHMETIC = TaskGenerator(
    name="arithmetic",
    description="'The sum of 17 and 25 is' -> 42",
    generate=generate,
    held_out="combinations of operands",
    variants={"operator": OPERATORS},
)
