"""Names without a language model: fixed rules over what was measured. No key, no network, the same label every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphs.evidence import Context, Evidence
from graphs.label import LONGEST, Expectation, Label, Role, Score
from labelers.causal_test import SMALL
from labelers.head_roles import Named, by_attention, name_head
from labelers.predicate import Predicate
from labelers.rule_choice import MAIN, Choice, choose
from labelers.rule_examples import POSITIVE, Examples
from labelers.rules.rule import show

LEAST = 0.65
"""Balanced accuracy that a rule must promise on the explaining windows to be a name."""
_FIXED: dict[str, str] = {
    "input": "token embeddings",
    "logits": "output logits",
    "token": "token of the prompt",
    "logit": "next token",
    "difference": "difference of next tokens",
    "residual": "residual stream",
    "bias": "constants of the layer",
    "positional": "position embeddings",
    "own": "own constants",
}
"""Names of nodes that need no evidence."""
UNCLEAR = "unclear"
_LARGE = 0.05
"""Share of the task's metric from which a direct effect on the answers is worth a name."""


@dataclass(frozen=True)
class RuleLabeler:
    """Labels by the first of: what the node is (errors, inputs, outputs), a head's measured role, the rule that best tells
    where the node fires, if that is good enough; else `unclear` with the tokens at its peaks."""

    least: float = LEAST
    """Balanced accuracy that a rule must promise on the explaining windows."""

    @property
    def name(self) -> str:
        """What stands in `Label.labeler`."""
        return "rules"

    def label(self, evidence: Evidence) -> Label:
        """The node's label. Never fails."""
        if evidence.node.kind == "error":
            return _error(evidence)
        if evidence.node.kind in _FIXED:
            text = _FIXED[evidence.node.kind]
            return Label(evidence.node, text, "unclear", self.name, rule="kind", confidence=1.0)
        named = _named(evidence)
        if named is not None:
            return _of_named(evidence, named)
        choice = _choice(evidence)
        if choice is None or choice.value < self.least:
            return _unclear(evidence, choice)
        return _of_rule(evidence, choice)


def _named(evidence: Evidence) -> Named | None:
    """What a head's scores, then its direct effect on the task's answers, then its strongest places say."""
    if evidence.head is None:
        return None
    return name_head(evidence.head) or _by_answers(evidence) or by_attention(evidence.head.pairs)


def _by_answers(evidence: Evidence) -> Named | None:
    """Raises right answers, or lowers wrong ones, ... where that direct effect is large."""
    effects = {side: evidence.answers.get(side, 0.0) for side in ("right", "wrong")}
    share = _direct(evidence)
    if abs(share) < _LARGE:
        return None
    side = max(effects, key=lambda name: abs(effects[name]))
    raises = effects[side] > 0
    text = f"{'raises' if raises else 'lowers'} {side} answers"
    said = ", ".join(f"{name} answers {value:+.2f}" for name, value in effects.items())
    description = f"Direct effect on the logits: {said}; {share:+.0%} of the metric."
    ablated = "down" if share > 0 else "up"
    role: Role = "promotes" if raises else "suppresses"
    return Named(f"answers:{side}", text, role, description, min(abs(share), 1.0), ablated=ablated)


def _direct(evidence: Evidence) -> float:
    """Direct effect on right less wrong answers, as a share of the task's metric where that is a difference of logits."""
    before = next((effect.before for effect in evidence.causal if effect.metric == "logit-diff"), 0.0)
    difference = evidence.answers.get("right", 0.0) - evidence.answers.get("wrong", 0.0)
    return difference / before if before > 0 else 0.0


def _error(evidence: Evidence) -> Label:
    share = "" if evidence.flow_share is None else f", {100 * evidence.flow_share:.2g} % of flow"
    description = "What the transcoder misses of its layer" + (f"; it carries{share[1:]}." if share else ".")
    return Label(evidence.node, f"error{share}", "unclear", "rules", description, "kind", confidence=1.0)


def _of_named(evidence: Evidence, named: Named) -> Label:
    role = Expectation("ablate", "up" if named.ablated == "up" else "down") if named.ablated else None
    return Label(
        evidence.node,
        named.text,
        named.role,
        "rules",
        named.description,
        named.rule,
        named.cites,
        confidence=round(named.value, 4),
        expects=expected(evidence) or role,
        scores={"role": Score(round(named.value, 4))},
    )


def _choice(evidence: Evidence) -> Choice | None:
    if not any(context.kind in POSITIVE and context.tokens for context in evidence.of("explain")):
        return None
    return choose(Examples.that_explain(evidence))


def _of_rule(evidence: Evidence, choice: Choice) -> Label:
    predicate = choice.predicate
    text, role, tokens = _said(evidence, predicate)
    role = role if choice.main >= MAIN else "mixed"
    fits, against = _for_and_against(evidence.of("explain"), predicate)
    return Label(
        evidence.node,
        text,
        role,
        "rules",
        _description(evidence, predicate, fits),
        str(predicate),
        tuple(fits[:4]),
        f"Holds, but silent: {', '.join(against[:4])}." if against else "",
        round(choice.value, 4),
        expects=expected(evidence),
        predicts=tokens,
        scores=held_out(predicate, evidence.of("score")),
    )


def _said(evidence: Evidence, predicate: Predicate) -> tuple[str, Role, tuple[str, ...]]:
    """The label's text, role and predicted tokens: `say "x"` where the first branch is about what follows and the node raises
    just that."""
    branch = predicate.branches[0]
    following = [atom for atom in branch.atoms if atom.rule == "next"]
    if following:
        raised = {effect.token for effect in evidence.promotes}
        lowered = {effect.token for effect in evidence.suppresses}
        words = following[0].words
        if raised.intersection(words) and not lowered.intersection(words):
            first = replace(following[0], words=tuple(sorted(words, key=lambda word: word not in raised)))
            rest = [atom.text for atom in branch.atoms if atom is not following[0]]
            said = " ".join(["say " + first.text.removeprefix("before "), *rest])
            return " ".join(said.split()[:LONGEST]), "promotes", first.words
    return predicate.text, "detects", ()


def _for_and_against(contexts: Sequence[Context], predicate: Predicate) -> tuple[list[str], list[str]]:
    """Ids of the windows in which the rule holds where the node fires, and of those in which it holds in vain."""
    holding = [context for context in contexts if context.tokens]
    examples = Examples.of(holding)
    mask = predicate.where(examples.text)
    hits, any_hit = examples.text.any_in_window(mask & examples.fires), examples.text.any_in_window(mask)
    fits = [context.id for context, hit in zip(holding, hits) if hit and context.kind in POSITIVE]
    against = [context.id for context, hit in zip(holding, any_hit) if hit and context.kind not in POSITIVE]
    return fits, against


def _description(evidence: Evidence, predicate: Predicate, fits: Sequence[str]) -> str:
    count = sum(context.kind in POSITIVE for context in evidence.of("explain"))
    parts = [f"Fires where: {_whole(predicate)} ({len(fits)} of {count} windows)."]
    if evidence.promotes:
        parts.append(f"Raises {_listed([effect.token for effect in evidence.promotes[:5]])}.")
    return " ".join(parts)


def _whole(predicate: Predicate) -> str:
    said = ["; and ".join(f"{atom.rule} {_listed(atom.words)}" for atom in one.atoms) for one in predicate.branches]
    return "; or ".join(said)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f'"{show(word)}"' for word in words)


def _unclear(evidence: Evidence, choice: Choice | None) -> Label:
    """`unclear`, with the commonest tokens at the peaks, or those that the node raises where there are no windows."""
    peaks = [
        context.tokens[context.peak]
        for context in evidence.of("explain")
        if context.kind in POSITIVE and context.tokens
    ]
    common = sorted(dict.fromkeys(peaks), key=lambda token: -peaks.count(token))[:3]
    tokens = common or [effect.token for effect in evidence.promotes[:3]]
    best = "" if choice is None else f" The best rule was: {_whole(choice.predicate)} ({choice.value:.2f})."
    return Label(
        evidence.node,
        " ".join([UNCLEAR + (":" if tokens else ""), *[f'"{show(token)}"' for token in tokens]]),
        "unclear",
        "rules",
        f"No rule tells well enough where it is active.{best}",
        UNCLEAR,
        confidence=0.0 if choice is None else round(choice.value, 4),
        abstain=True,
        expects=expected(evidence),
    )


def held_out(predicate: Predicate, contexts: Sequence[Context]) -> dict[str, Score]:
    """Precision and recall of a rule over windows: it holds somewhere in the text, the node fires somewhere in it."""
    windows = [context for context in contexts if context.tokens]
    if not windows:
        return {}
    holds = predicate.holds_in([context.tokens for context in windows])
    fires = np.array([context.kind in POSITIVE for context in windows])
    right, scores = int((holds & fires).sum()), {}
    for name, among in (("precision", int(holds.sum())), ("recall", int(fires.sum()))):
        if among:
            scores[name] = Score(round(right / among, 4), examples=among)
    return scores


def expected(evidence: Evidence) -> Expectation | None:
    """What ablating the node should do to the task's metric: by its direct effect on the answers where that is large, else
    by its edges in the circuit, whose positive scores say that the metric falls without them. Where these scores are
    effects on the metric, it is the change that they estimate, and none where they come to next to nothing. None where
    neither tells.
    """
    direct = _direct(evidence)
    if abs(direct) >= _LARGE:
        return Expectation("ablate", "down" if direct > 0 else "up")
    signed = sum(edge.weight for edge in evidence.outputs)
    total = sum(abs(edge.weight) for edge in evidence.outputs)
    gap = next((effect.gap for effect in evidence.causal if effect.gap), None)
    if evidence.foretold and gap and evidence.outputs and abs(signed) < SMALL * abs(gap):
        return Expectation(evidence.foretold, "none")
    if total == 0 or abs(signed) < 0.2 * total:
        return None
    return Expectation(evidence.foretold or "ablate", "down" if signed > 0 else "up")
