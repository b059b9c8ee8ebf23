"""Induction (Olsson et al. 2022): in a list that begins again, the next word is the one that came after before."""

from __future__ import annotations

import random

from discovery.task import PromptPair
from discovery.tasks.generator import BadTaskOption, Split, TaskGenerator, distinct_pairs, in_split, words
from discovery.tasks.slots import Filled, fill, spanned_pair

WORDS: tuple[str, ...] = words(
    "apple river stone lamp bread cloud paper glass wood gold iron sand snow rain wind fire leaf flower grass root "
    "corn milk salt egg bird cat bear wolf lion goat shirt coat shoe hat bell drum flag map coin key"
)
OPENING = "Words:"
COUNTERFACTUALS: tuple[str, ...] = ("swap_antecedents", "other_query", "swap_targets")


def may_follow(first: str, second: str, split: Split) -> bool:
    """Whether `second` may stand right after `first` in a list of `split`."""
    return in_split(split, "induction", first, second)


def _filler(rng: random.Random, before: tuple[str, ...], after: tuple[str, ...], taken: list[str]) -> str:
    """A word not in `taken` that makes only combinations of the train split with all its possible neighbours."""
    return rng.choice(
        [
            word
            for word in WORDS
            if word not in taken
            and all(may_follow(other, word, "train") for other in before)
            and all(may_follow(word, other, "train") for other in after)
        ]
    )


def _two_successions(rng: random.Random, split: Split) -> tuple[str, str, str, str]:
    """(a, b, c, d), all different, such that b and d may each follow a and c."""
    while True:
        a, c = rng.sample(WORDS, 2)
        followers = [w for w in WORDS if w not in (a, c) and may_follow(a, w, split) and may_follow(c, w, split)]
        if len(followers) >= 2:
            b, d = rng.sample(followers, 2)
            return a, b, c, d


def draw(rng: random.Random, split: Split, counterfactual: str = "swap_antecedents") -> PromptPair:
    """One pair: a list with a b and c d somewhere in it, begun again with a.

    Counterfactuals: a and c change places in the list, so that d follows a (`swap_antecedents`: the keys of the
    induction head change); the list is begun again with c (`other_query`); b and d change places (`swap_targets`).
    """
    while True:
        a, b, c, d = _two_successions(rng, split)
        try:
            layout = _layout(rng, a, b, c, d)
        except IndexError:  # no filler fits between these words: take others
            continue
        break

    slots = {a: "first", b: "target", c: "other", d: "foil"}
    listed = (f"{{{slots[word]}}}" if word in slots else word for word in layout)
    template = " ".join([OPENING, *listed, "{query}"])

    def prompt(places: dict[str, str], query: str) -> Filled:
        return fill(template, query=query, **{slot: places.get(word, word) for word, slot in slots.items()})

    clean = prompt({}, a)
    if counterfactual == "swap_antecedents":
        corrupt = prompt({a: c, c: a}, a)
    elif counterfactual == "other_query":
        corrupt = prompt({}, c)
    elif counterfactual == "swap_targets":
        corrupt = prompt({b: d, d: b}, a)
    else:
        raise BadTaskOption(
            f"induction has no counterfactual {counterfactual!r}: use one of {', '.join(COUNTERFACTUALS)}"
        )
    return spanned_pair(clean, corrupt, (f" {b}",), (f" {d}",), {slot: slot for slot in slots.values()})


def _layout(rng: random.Random, a: str, b: str, c: str, d: str) -> list[str]:
    """The list: a b and c d in either order, fillers before, between and after; raises `IndexError` where none fits.

    Fillers fit their neighbours in the clean and in every corrupt prompt, so that only the successions asked for
    belong to the split at hand.
    """
    first, second = ((a, b), (c, d)) if rng.random() < 0.5 else ((c, d), (a, b))
    words: list[str] = []
    taken = [a, b, c, d]

    def fill(number: int, before: tuple[str, ...], after: tuple[str, ...]) -> None:
        for left in range(number, 0, -1):
            word = _filler(rng, before, after if left == 1 else (), taken)
            words.append(word)
            taken.append(word)
            before = (word,)

    fill(rng.randrange(3), (), (a, c))
    words.extend(first)
    fill(1 + rng.randrange(2), (b, d), (a, c))
    words.extend(second)
    fill(1 + rng.randrange(2), (b, d), (a, c))
    return words


def generate(count: int, seed: int, split: Split, counterfactual: str = "swap_antecedents") -> list[PromptPair]:
    """`count` different pairs; see `draw` for the counterfactuals."""
    return distinct_pairs(lambda rng: draw(rng, split, counterfactual), count, seed, split)


INDUCTION = TaskGenerator(
    name="induction",
    description="'Words: lamp tree cat river lamp' -> tree",
    generate=generate,
    held_out="successions of two words",
    variants={"counterfactual": COUNTERFACTUALS},
)
