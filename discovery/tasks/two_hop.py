"""Two hops: a city stands for its country, whose capital (or language, currency, continent) is asked for."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split
from discovery.tasks.places import CITIES, COUNTRY_OF, Country
from discovery.tasks.slots import fill, spanned_pair

RELATIONS: tuple[str, ...] = ("capital", "language", "currency", "continent")
RELATION_LAST: tuple[str, ...] = (
    "The city of {city} is in the country whose {relation} is",
    "People from {city} live in a country whose {relation} is",
    "My aunt moved to {city}, so she knows that the local {relation} is",
    "We stayed in {city} and learned that the national {relation} is",
)
RELATION_FIRST: tuple[str, ...] = (
    "The {relation} of the country where {city} lies is",
    "The {relation} of the country that includes {city} is",
    "I asked about the {relation} of the country around {city}, which is",
)
ORDERS: dict[str, tuple[str, ...]] = {
    "mixed": RELATION_LAST + RELATION_FIRST,
    "relation_last": RELATION_LAST,
    "relation_first": RELATION_FIRST,
}


def fact(country: Country, relation: str) -> str:
    """What `relation` a country has, in one word."""
    return {
        "capital": country.capital,
        "language": country.language,
        "currency": country.currency,
        "continent": country.continent,
    }[relation]


def draw(rng: random.Random, split: Split, order: str = "mixed", relation: str = "capital") -> PromptPair:
    """One pair: the corrupt prompt names a city of a country for which the fact differs.

    `order`: whether the relation stands after the city, so that nothing but the country can be worked out at the city,
    or before it.
    """
    if order not in ORDERS:
        raise BadTaskOption(f"two-hop has no order {order!r}: use one of {', '.join(ORDERS)}")
    if relation not in RELATIONS:
        raise BadTaskOption(f"two-hop has no relation {relation!r}: use one of {', '.join(RELATIONS)}")
    template = rng.choice(ORDERS[order])
    while True:
        city, other = rng.sample(CITIES, 2)
        right, wrong = (fact(COUNTRY_OF[c], relation) for c in (city, other))
        if right != wrong and all(in_split(split, "two-hop", relation, c) for c in (city, other)):
            break
    clean, corrupt = (fill(template, city=c, relation=relation) for c in (city, other))
    return spanned_pair(clean, corrupt, (f" {right}",), (f" {wrong}",))


def generate(count: int, seed: int, split: Split, order: str = "mixed", relation: str = "capital") -> list[PromptPair]:
    """`count` different pairs; see `draw` for the options."""
    return distinct_pairs(lambda rng: draw(rng, split, order, relation), count, seed, split)


TWO_HOP = TaskGenerator(
    name="two-hop",
    description="city -> country -> capital: 'The city of Lyon is in the country whose capital is' -> Paris",
    generate=generate,
    held_out="combinations of city and relation (no wording of the train split asks for a held-out city's capital)",
    variants={"order": tuple(ORDERS), "relation": RELATIONS},
)
