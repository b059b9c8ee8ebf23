"""The token itself, exactly."""

from labelers.rules.rule import Rule, quoted, seen

RULE = Rule(
    where=lambda text, words: text.is_one_of(words),
    words=seen,
    say=quoted,
)
