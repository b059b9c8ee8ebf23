"""Hypernymy: what kind of thing is it?"""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import fill, spanned_pair

KINDS: dict[str, tuple[str, ...]] = {
    "bird": words("robin sparrow crow pigeon swan hawk falcon penguin duck parrot"),
    "fish": words("salmon trout tuna cod shark carp herring bass"),
    "tree": words("pine birch willow maple cedar palm spruce"),
    "flower": words("rose tulip daisy lily violet sunflower"),
    "fruit": words("banana peach pear lemon cherry mango melon plum"),
    "vegetable": words("carrot potato cabbage lettuce pepper turnip"),
    "metal": words("copper zinc nickel lead tin platinum"),
    "tool": words("hammer saw drill wrench shovel chisel"),
    "color": words("red blue green yellow purple pink"),
    "country": words("France Germany Spain Japan China Brazil Canada"),
    "language": words("French German Spanish Japanese Chinese Russian"),
    "disease": words("cancer malaria measles cholera flu polio"),
}
"""Each kind and words for things of it."""
TEMPLATES: tuple[str, ...] = (
    "The word {word} is the name of a",
    "As everyone knows, {word} is a kind of",
    "In the dictionary, {word} is described as a type of",
    "They said that {word} is an example of a",
)


def draw(rng: random.Random, split: Split) -> PromptPair:
    """One pair: the corrupt prompt holds a word for another kind of thing."""
    template = rng.choice(TEMPLATES)

    def word_of(kind: str) -> str:
        return rng.choice([word for word in KINDS[kind] if in_split(split, "hypernymy", template, word)])

    kinds = [k for k, words in KINDS.items() if any(in_split(split, "hypernymy", template, word) for word in words)]
    kind, other = rng.sample(kinds, 2)
    clean, corrupt = fill(template, word=word_of(kind)), fill(template, word=word_of(other))
    return spanned_pair(clean, corrupt, (f" {kind}",), (f" {other}",))


def generate(count: int, seed: int, split: Split) -> list[PromptPair]:
    """`count` different pairs."""
    return distinct_pairs(lambda rng: draw(rng, split), count, seed, split)


HYPERNYMY = TaskGenerator(
    name="hypernymy",
    description="'As everyone knows, robin is a kind of' -> bird",
    generate=generate,
    held_out="combinations of word and wording",
)
