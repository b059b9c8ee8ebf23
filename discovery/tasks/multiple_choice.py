"""Multiple choice with the answer in the question (Wiegreffe et al. 2024's copying colors, as MIB uses it)."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import Filled, fill, spanned_pair

COLORS: tuple[str, ...] = words("red blue green yellow black white brown gray pink orange purple")
THINGS: tuple[str, ...] = words(
    "box ball car shirt hat chair table cup door house bike flower boat coat book bag lamp kite"
)
SYMBOLS = "ABCD"
OTHER_SYMBOLS = "EFGHIJKLMNOPQRSTUVWXYZ"
COUNTERFACTUALS: tuple[str, ...] = ("position", "symbols")


TEMPLATE = """Question: A {thing} is {color}. What color is a {thing}?
{letter1}. {choice1}
{letter2}. {choice2}
{letter3}. {choice3}
{letter4}. {choice4}
Answer:"""
SPANS = {slot: slot for slot in ("color", *(f"{part}{n}" for n in range(1, 5) for part in ("letter", "choice")))}


def _prompt(thing: str, color: str, symbols: str, choices: list[str]) -> Filled:
    letters = {f"letter{n}": symbol for n, symbol in enumerate(symbols, 1)}
    return fill(
        TEMPLATE, thing=thing, color=color, **letters, **{f"choice{n}": text for n, text in enumerate(choices, 1)}
    )


def draw(rng: random.Random, split: Split, counterfactual: str = "position") -> PromptPair:
    """One pair: four choices; the corrupt one has the color elsewhere (`position`) or other letters (`symbols`)."""
    while True:
        thing, color = rng.choice(THINGS), rng.choice(COLORS)
        if in_split(split, "multiple-choice", thing, color):
            break
    choices = [color, *rng.sample([c for c in COLORS if c != color], 3)]
    rng.shuffle(choices)
    right = choices.index(color)
    clean = _prompt(thing, color, SYMBOLS, choices)
    if counterfactual == "position":
        place = rng.choice([i for i in range(4) if i != right])
        moved = list(choices)
        moved[right], moved[place] = moved[place], moved[right]
        corrupt, wrong = _prompt(thing, color, SYMBOLS, moved), SYMBOLS[place]
    elif counterfactual == "symbols":
        symbols = "".join(rng.sample(OTHER_SYMBOLS, 4))
        corrupt, wrong = _prompt(thing, color, symbols, choices), symbols[right]
    else:
        raise BadTaskOption(
            f"multiple-choice has no counterfactual {counterfactual!r}: use one of {', '.join(COUNTERFACTUALS)}"
        )
    return spanned_pair(clean, corrupt, (f" {SYMBOLS[right]}",), (f" {wrong}",), SPANS)


def generate(count: int, seed: int, split: Split, counterfactual: str = "position") -> list[PromptPair]:
    """`count` different pairs; see `draw` for the counterfactuals."""
    return distinct_pairs(lambda rng: draw(rng, split, counterfactual), count, seed, split)


MULTIPLE_CHOICE = TaskGenerator(
    name="multiple-choice",
    description="'A box is brown. What color is a box?' with four lettered choices -> the letter",
    generate=generate,
    held_out="combinations of thing and color",
    variants={"counterfactual": COUNTERFACTUALS},
)
