"""Docstring completion (Heimersheim and Janiak 2023): which parameter does a docstring name next?"""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import fill, spanned_pair

WORDS: tuple[str, ...] = words(
    "load size files project first last image shape model input output state action result source target index value "
    "item path user date event table field label token group order level score count page line text node edge"
)
NAMES: tuple[str, ...] = words("run old new port load send build parse check write")
COUNTERFACTUALS: tuple[str, ...] = ("random_definition", "random_answer")
TEMPLATE = '''def {name}(self, {p0}, {p1}, {p2}, {p3}, {p4}, {p5}):
    """{title}

    :param {first}: {first_text}
    :param {second}: {second_text}
    :param'''
SPANS = {"p2": "first_defined", "p3": "second_defined", "p4": "next_defined", "first": "first", "second": "second"}


def _next_allowed(word: str, following: str, split: Split) -> bool:
    return in_split(split, "docstring", word, following)


def draw(rng: random.Random, split: Split, counterfactual: str = "random_definition") -> PromptPair:
    """One pair: six parameters, of which the docstring has named the third and fourth; the fifth comes next.

    Counterfactuals: other parameters in the definition (`random_definition`), or only the fifth (`random_answer`).
    """
    if counterfactual not in COUNTERFACTUALS:
        raise BadTaskOption(
            f"docstring has no counterfactual {counterfactual!r}: use one of {', '.join(COUNTERFACTUALS)}"
        )
    while True:
        words = rng.sample(WORDS, 18)
        if _next_allowed(words[3], words[4], split) and _next_allowed(words[3], words[10], split):
            break
    parameters, others = words[:6], words[6:12]
    other_parameters = others if counterfactual == "random_definition" else [*parameters[:4], others[4], parameters[5]]
    rest = {
        "name": rng.choice(NAMES),
        "title": " ".join(words[12:15]),
        "first": parameters[2],
        "first_text": " ".join(words[15:17]),
        "second": parameters[3],
        "second_text": " ".join([words[17], words[12]]),
    }
    clean, corrupt = (
        fill(TEMPLATE, **rest, **{f"p{i}": word for i, word in enumerate(defined)})
        for defined in (parameters, other_parameters)
    )
    return spanned_pair(clean, corrupt, (f" {parameters[4]}",), (f" {other_parameters[4]}",), SPANS)


def generate(count: int, seed: int, split: Split, counterfactual: str = "random_definition") -> list[PromptPair]:
    """`count` different pairs; see `draw` for the counterfactuals."""
    return distinct_pairs(lambda rng: draw(rng, split, counterfactual), count, seed, split)


DOCSTRING = TaskGenerator(
    name="docstring",
    description="the parameter that a Python docstring documents next",
    generate=generate,
    held_out="successions of two parameters",
    variants={"counterfactual": COUNTERFACTUALS},
)
