"""Which rules there are."""

from __future__ import annotations

from labelers.rules import affix, context, neighbours, place, token, word_class
from labelers.rules.rule import Rule

RULES: dict[str, Rule] = {
    "token": token.RULE,
    "class": word_class.RULE,
    "prefix": affix.PREFIX,
    "suffix": affix.SUFFIX,
    "before": neighbours.BEFORE,
    "next": neighbours.NEXT,
    "place": place.RULE,
    "two-before": neighbours.TWO_BEFORE,
    "soon": context.SOON,
    "later": context.LATER,
}
"""By the name that stands in `Label.rule`, simplest first: among equally good ones the first is taken."""
