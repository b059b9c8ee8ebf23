"""Country and capital: one fact recalled from one word."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import Split, TaskGenerator, distinct_pairs, in_split
from discovery.tasks.places import COUNTRIES
from discovery.tasks.slots import fill, spanned_pair

TEMPLATES: tuple[str, ...] = (
    "The capital of {country} is",
    "The capital city of {country} is",
    "I am sure that the capital of {country} is",
    "Everyone knows that the capital of {country} is",
    "We learned at school that the capital of {country} is",
    "The train to the capital of {country} goes to",
    "Yesterday we flew to the capital of {country}, which is",
    "The answer is simple: the capital of {country} is",
)


def draw(rng: random.Random, split: Split) -> PromptPair:
    """One pair: the corrupt prompt names another country."""
    while True:
        template = rng.choice(TEMPLATES)
        allowed = [c for c in COUNTRIES if in_split(split, "country-capital", template, c.name)]
        if len(allowed) > 1:
            break
    country, other = rng.sample(allowed, 2)
    clean, corrupt = (fill(template, country=c.name) for c in (country, other))
    return spanned_pair(clean, corrupt, (f" {country.capital}",), (f" {other.capital}",))


def generate(count: int, seed: int, split: Split) -> list[PromptPair]:
    """`count` different pairs."""
    return distinct_pairs(lambda rng: draw(rng, split), count, seed, split)


COUNTRY_CAPITAL = TaskGenerator(
    name="country-capital",
    description="'The capital of France is' -> Paris",
    generate=generate,
    held_out="combinations of country and wording",
)
