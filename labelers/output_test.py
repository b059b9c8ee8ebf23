"""The output test: a label that says which tokens a node raises is held against what steering the node did to their logits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from graphs.evidence import Evidence, SteeredToken
from graphs.label import Label, Score
from graphs.node import NodeId
from labelers.draws import draw

_MOST, _OTHERS = 10, 40
"""Tokens of a label, and of other labels to compare it with, at most."""
_QUOTED = re.compile(r'"([^"]+)"')
_WORD = re.compile(r"[^\W\d_]+(?:'\w+)?")
_EMPTY = frozenset(
    "a an and any as at by for from in into is it its like logits next of on or other out over such that the their to token "
    "tokens up with word words say says promote promotes promoting raise raises raising suppress suppresses suppressing lower "
    "lowers lowering boost boosts predict predicts predicting name names ending beginning start starts end ends after before "
    "answer answers right wrong unclear output outputs".split()
)


def predicted(label: Label) -> tuple[str, ...]:
    """The tokens that a label says the node raises (or, of role `suppresses`, lowers); none for other labels.

    What it `predicts`; else, of a label that promotes or suppresses and is not by a rule (which would say), what stands in
    quotation marks in its text, or all of its words but those that only say what is done.
    """
    if label.abstain:
        return ()
    if label.predicts or label.rule or label.role not in ("promotes", "suppresses"):
        return label.predicts[:_MOST]
    return (_quoted(label) or _words(label))[:_MOST]


def _quoted(label: Label) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (word.strip("…") for word in _QUOTED.findall(label.text)))))


def _words(label: Label) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in _WORD.findall(label.text) if word.lower() not in _EMPTY))


def tokens_to_steer(labels: Mapping[NodeId, Label], seed: int) -> dict[NodeId, tuple[str, ...]]:
    """For each node whose label predicts tokens, these and some that other labels predict, or name: what must be measured."""
    named = {node: predicted(label) or _quoted(label) for node, label in labels.items()}
    result: dict[NodeId, tuple[str, ...]] = {}
    for node, tokens in ((node, predicted(label)) for node, label in labels.items()):
        if not tokens:
            continue
        others = [token for other, found in named.items() if other != node for token in found if token not in tokens]
        others = list(dict.fromkeys(others))
        drawn = draw(seed, "steering", str(node)).permutation(len(others))[:_OTHERS]
        result[node] = (*tokens, *(others[place] for place in sorted(drawn.tolist())))
    return result


def output_score(label: Label, evidence: Evidence, resamples: int, seed: int) -> Score | None:
    """How much more than other tokens the predicted ones rise (fall): the chance that a predicted token rises more than a
    random one, 0.5 for any label at random; with a 95 % bootstrap interval over tokens and
    prompts.

    baseline: the same for the tokens that other labels predict or name. unparsed: predicted tokens that are none of the
    model's. None where nothing was measured.
    """
    tokens = predicted(label)
    if evidence.steering is None or not tokens:
        return None
    known = {one.token: one for one in evidence.steering.tokens}
    own = [known[token] for token in tokens if token in known]
    if not own:
        return None
    ranks = _ranks(own, label)
    others = [one for token, one in known.items() if token not in tokens]
    low = high = None
    if resamples > 0:
        rng = draw(seed, "bootstrap", "output", str(label.node))
        rows = rng.integers(len(ranks), size=(resamples, len(ranks), 1))
        columns = rng.integers(ranks.shape[1], size=(resamples, 1, ranks.shape[1]))
        means = ranks[rows, columns].mean((1, 2))
        low, high = (round(float(end), 4) for end in np.quantile(means, [0.025, 0.975]))
    baseline = round(float(_ranks(others, label).mean()), 4) if others else None
    value = round(float(ranks.mean()), 4)
    return Score(value, low, high, baseline, examples=ranks.size, unparsed=len(tokens) - len(own))


def _ranks(tokens: Sequence[SteeredToken], label: Label) -> Float[np.ndarray, "token prompt"]:
    """The shares of the vocabulary that do not rise (fall) as much."""
    ranks = np.array([one.above for one in tokens])
    return 1 - ranks if label.role == "suppresses" else ranks
