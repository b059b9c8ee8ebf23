"""Gendered pronouns (Mathwin et al. 2023): a tag question takes the pronoun of the name before it."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.people import MEN, PRONOUN, WOMEN
from discovery.tasks.slots import fill, spanned_pair

TEMPLATES: tuple[str, ...] = (
    "So {name} is such a {quality} {role}, isn't",
    "I think {name} is a {quality} {role}, isn't",
    "Everyone says that {name} is a {quality} {role}, isn't",
    "You know, {name} is really a {quality} {role}, isn't",
)
QUALITIES: tuple[str, ...] = words("good great nice kind clever brave funny smart strong bad")
ROLES: tuple[str, ...] = words(
    "friend cook teacher doctor driver singer dancer writer student leader player lawyer nurse swimmer runner"
)


def draw(rng: random.Random, split: Split) -> PromptPair:
    """One pair: the corrupt prompt names a person of the other gender."""
    template, quality, role = rng.choice(TEMPLATES), rng.choice(QUALITIES), rng.choice(ROLES)

    def one_of(names: tuple[str, ...]) -> str:
        return rng.choice([name for name in names if in_split(split, "gendered-pronoun", name, role)])

    names = [one_of(WOMEN), one_of(MEN)]
    rng.shuffle(names)
    clean, corrupt = (fill(template, name=name, quality=quality, role=role) for name in names)
    answer, wrong = (f" {PRONOUN[name]}" for name in names)
    return spanned_pair(clean, corrupt, (answer,), (wrong,), {"name": "name", "role": "role"})


def generate(count: int, seed: int, split: Split) -> list[PromptPair]:
    """`count` different pairs."""
    return distinct_pairs(lambda rng: draw(rng, split), count, seed, split)


GENDERED_PRONOUN = TaskGenerator(
    name="gendered-pronoun",
    description="'So Mary is such a good friend, isn't' -> she",
    generate=generate,
    held_out="combinations of name and role",
)
