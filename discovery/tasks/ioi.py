"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593): which of two names did not act?"""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.people import NAMES
from discovery.tasks.slots import Filled, fill, spanned_pair

TEMPLATES: tuple[str, ...] = (
    "When {A} and {B} went to the {place}, {S} gave a {thing} to",
    "After {A} and {B} went to the {place}, {S} gave a {thing} to",
    "While {A} and {B} were working at the {place}, {S} gave a {thing} to",
    "Then, {A} and {B} went to the {place}. {S} gave a {thing} to",
    "Then, {A} and {B} had a lot of fun at the {place}. {S} gave a {thing} to",
    "Then, {A} and {B} were thinking about going to the {place}. {S} wanted to give a {thing} to",
    "Yesterday {A} and {B} met at the {place}, and {S} handed a {thing} to",
    "The friends {A} and {B} found a {thing} at the {place}. {S} gave it to",
    "Afterwards, {A} and {B} went to the {place}. {S} bought a {thing} for",
)
PLACES: tuple[str, ...] = words("store garden restaurant school hospital office house station park market")
THINGS: tuple[str, ...] = words("ring kiss bone basketball computer necklace drink snack book letter")
ORDERS: tuple[str, ...] = ("mixed", "ABBA", "BABA")
COUNTERFACTUALS: tuple[str, ...] = ("s2_io_flip", "random_names", "abc")


def may_meet(first: str, second: str, split: Split) -> bool:
    """Whether two names may stand in one text of `split` (the order does not matter)."""
    return in_split(split, "ioi", *sorted((first, second)))


def two_people(rng: random.Random, split: Split, taken: tuple[str, ...] = ()) -> tuple[str, str]:
    """Two names of `split`, none of them `taken`."""
    while True:
        first, second = rng.sample(NAMES, 2)
        if may_meet(first, second, split) and first not in taken and second not in taken:
            return first, second


def stranger(rng: random.Random, company: tuple[str, ...], split: Split) -> str:
    """A name that is not in `company`; on the train split one that may meet all of it."""
    fits = [
        n for n in NAMES if n not in company and (split == "held-out" or all(may_meet(n, c, split) for c in company))
    ]
    return rng.choice(fits)


def draw(rng: random.Random, split: Split, order: str = "mixed", counterfactual: str = "s2_io_flip") -> PromptPair:
    """One pair; `order` ABBA puts the indirect object first, BABA the subject.

    Counterfactuals: the second subject becomes the indirect object (`s2_io_flip`, which makes the other name right),
    the same sentence about two other people (`random_names`), or a third person acting (`abc`: both first names are as
    good).
    """
    template, place, thing = rng.choice(TEMPLATES), rng.choice(PLACES), rng.choice(THINGS)
    giver, receiver = two_people(rng, split)
    abba = rng.random() < 0.5 if order == "mixed" else order == "ABBA"

    def sentence(subject: str, other: str, actor: str) -> Filled:
        first, second = (other, subject) if abba else (subject, other)
        return fill(template, A=first, B=second, S=actor, place=place, thing=thing)

    clean, wrong = sentence(giver, receiver, giver), giver
    if counterfactual == "s2_io_flip":
        corrupt = sentence(giver, receiver, receiver)
    elif counterfactual == "random_names":
        new_giver, new_receiver = two_people(rng, split, taken=(giver, receiver))
        corrupt = sentence(new_giver, new_receiver, new_giver)
    elif counterfactual == "abc":
        corrupt = sentence(giver, receiver, stranger(rng, (giver, receiver), split))
    else:
        raise BadTaskOption(f"ioi has no counterfactual {counterfactual!r}: use one of {', '.join(COUNTERFACTUALS)}")
    spans = {"A": "io" if abba else "s1", "B": "s1" if abba else "io", "S": "s2"}
    return spanned_pair(clean, corrupt, (f" {receiver}",), (f" {wrong}",), spans)


def corrupt_answers(pair: PromptPair) -> tuple[str, ...]:
    """The names that the corrupt prompt holds once, less the one who acts (the last name)."""
    words = pair.corrupt.replace(",", " ").replace(".", " ").split()
    names = [word for word in words if word in NAMES]
    return tuple(f" {name}" for name in dict.fromkeys(names) if name != names[-1])


def generate(
    count: int, seed: int, split: Split, order: str = "mixed", counterfactual: str = "s2_io_flip"
) -> list[PromptPair]:
    """`count` different pairs; see `draw` for the options."""
    return distinct_pairs(lambda rng: draw(rng, split, order, counterfactual), count, seed, split)


IOI = TaskGenerator(
    name="ioi",
    description="indirect object identification: 'When Mary and John went to the store, John gave a drink to' -> Mary",
    generate=generate,
    held_out="pairs of names",
    variants={"counterfactual": COUNTERFACTUALS, "order": ORDERS},
    corrupt_answers=corrupt_answers,
)
