"""Subject-verb agreement across an attractor (Linzen et al. 2016; forms of Marks et al. 2024, arXiv 2403.19647)."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import fill, spanned_pair

SUBJECTS: tuple[tuple[str, str], ...] = tuple(
    (noun, noun + "s")
    for noun in words("boy girl teacher doctor farmer driver singer writer student lawyer king queen guard pilot")
)
"""Singular and plural."""
ATTRACTORS: tuple[tuple[str, str], ...] = tuple(
    (noun, noun + "s")
    for noun in words("car table house tree door window boat chair truck wall tower bridge horse dog")
)
"""Singular and plural of the nouns between subject and verb."""
RELATIONS: tuple[str, ...] = ("near", "behind", "beside", "under", "opposite")
OPENINGS: tuple[str, ...] = (
    "The",
    "We noticed that the",
    "It seems that the",
    "Today the",
    "I know that the",
    "They said that the",
    "In the picture the",
    "Everyone can see that the",
)
STRUCTURES: tuple[str, ...] = ("nounpp", "simple", "within_rc")
SPANS = {"subject": "subject", "other": "attractor"}
VERBS: tuple[str, str] = (" is", " are")


def draw(rng: random.Random, split: Split, structure: str = "nounpp") -> PromptPair:
    """One pair: the corrupt prompt's subject has the other number; the attractor, of any number, stays.

    Structures: `nounpp` ("The boys near the car"), `simple` ("The boys") and `within_rc` ("The car that the boys": the
    verb agrees with the nearer noun, inside the relative clause).
    """
    while True:
        subject, attractor, opening = rng.choice(SUBJECTS), rng.choice(ATTRACTORS), rng.choice(OPENINGS)
        if in_split(split, "subject-verb-agreement", subject[0], opening if structure == "simple" else attractor[0]):
            break
    relation = rng.choice(RELATIONS)
    number, other = rng.randrange(2), rng.choice(attractor)
    if structure == "nounpp":
        template = "{opening} {subject} {relation} the {other}"
    elif structure == "within_rc":
        template = "{opening} {other} that the {subject}"
    elif structure == "simple":
        template = "{opening} {subject}"
    else:
        raise BadTaskOption(
            f"subject-verb-agreement has no structure {structure!r}: use one of {', '.join(STRUCTURES)}"
        )
    rest = {"opening": opening, "relation": relation, "other": other}
    clean, corrupt = (fill(template, subject=subject[n], **rest) for n in (number, 1 - number))
    spans = {slot: name for slot, name in SPANS.items() if slot in clean.slots}
    return spanned_pair(clean, corrupt, (VERBS[number],), (VERBS[1 - number],), spans)


def generate(count: int, seed: int, split: Split, structure: str = "nounpp") -> list[PromptPair]:
    """`count` different pairs; see `draw` for the structures."""
    return distinct_pairs(lambda rng: draw(rng, split, structure), count, seed, split)


SUBJECT_VERB_AGREEMENT = TaskGenerator(
    name="subject-verb-agreement",
    description="'The boys near the car' -> are",
    generate=generate,
    held_out="combinations of subject and attractor (subject and opening words in the simple structure)",
    variants={"structure": STRUCTURES},
)
