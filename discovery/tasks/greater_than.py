"""Greater-than (Hanna et al. 2023, arXiv 2305.00586): what began in 1732 ends in a later year of that century."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import Filled, fill, spanned_pair

NOUNS: tuple[str, ...] = words(
    "war contract plan project journey siege conflict campaign expedition strike trial treaty alliance deal program "
    "dispute struggle tour voyage debate famine plague dynasty reform study"
)
CENTURIES: tuple[str, ...] = tuple(str(c) for c in range(11, 20))
FIRST_YEAR, LAST_YEAR = 20, 89
"""Start years in the century; from 20 on, so that what fits the corrupt year 01 best seldom fits the clean one."""
TEMPLATE = "The {noun} lasted from the year {century}{year:02d} to the year {century}"


def years(low: int, high: int) -> tuple[str, ...]:
    """The two-digit strings low..high."""
    return tuple(f"{year:02d}" for year in range(low, high + 1))


def _sentence(noun: str, century: str, year: int) -> Filled:
    """The prompt; the whole year is one span, since tokenizers divide it as they like."""
    filled = fill(TEMPLATE, noun=noun, century=century, year=year)
    whole = (filled.slots["century"][0], filled.slots["year"][1])
    return Filled(filled.text, {"noun": filled.slots["noun"], "year": whole})


def draw(rng: random.Random, split: Split) -> PromptPair:
    """One pair; the corrupt prompt begins in year 01 of the same century, as in the paper."""
    while True:
        century, year = rng.choice(CENTURIES), rng.randint(FIRST_YEAR, LAST_YEAR)
        if in_split(split, "greater-than", f"{century}{year}"):
            break
    noun = rng.choice(NOUNS)
    clean, corrupt = (_sentence(noun, century, y) for y in (year, 1))
    return spanned_pair(clean, corrupt, years(year + 1, 99), years(0, year))


def corrupt_answers(pair: PromptPair) -> tuple[str, ...]:
    """Every year after the corrupt prompt's 01."""
    return years(2, 99)


def generate(count: int, seed: int, split: Split) -> list[PromptPair]:
    """`count` different pairs; the answers are all later years of the century, the wrong ones all others."""
    return distinct_pairs(lambda rng: draw(rng, split), count, seed, split)


GREATER_THAN = TaskGenerator(
    name="greater-than",
    description="'The war lasted from the year 1732 to the year 17' -> 33 or later",
    generate=generate,
    held_out="start years (century and year)",
    metric="prob-diff",
    corrupt_answers=corrupt_answers,
)
