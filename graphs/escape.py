"""Making hostile text safe: tokens and labels may hold markup, quotes, control characters and text-direction tricks."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from unicodedata import east_asian_width
from xml.sax.saxutils import escape, quoteattr

# What XML 1.0 cannot hold, lone surrogates (no UTF-8), and controls that reorder or hide the text around them.
_UNFIT = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|"
    "[\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_SPACE = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"}


def clean(text: str) -> str:
    """`text` with every character that XML or UTF-8 cannot hold, or that hides or reorders its neighbours, shown as
    U+FFFD."""
    return _UNFIT.sub("\ufffd", text)


def xml_text(text: str) -> str:
    """`text` as XML character data."""
    return escape(clean(text))


def xml_attribute(text: str) -> str:
    """`text` as a quoted XML attribute value."""
    return quoteattr(clean(text))


def dot_string(text: str) -> str:
    """`text` as a quoted DOT string that shows exactly this text: no escape sequences, no entities, no line breaks."""
    flat = clean(text).replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\n\r\t]", " ", flat) + '"'


def shorten(text: str, length: int) -> str:
    """`text` on one line, cut with an ellipsis where it is wider than `length` letters (wide East Asian signs count
    two)."""
    return _cut(re.sub(r"\s+", " ", clean(text)).strip(), length)


def wrapped(text: str, length: int, lines: int) -> tuple[str, ...]:
    """`text` on so many lines at most, each up to `length` letters wide, broken behind spaces and commas; the last one is cut
    with an ellipsis where there is more."""
    flat = re.sub(r"\s+", " ", clean(text)).strip()
    found: list[str] = []
    rest = flat
    for piece in re.split(r"(?<=[ ,])", flat):
        if found and display_width((found[-1] + piece).rstrip()) <= length:
            found[-1] += piece
        elif len(found) < lines:
            rest = flat[sum(map(len, found)) :]
            found.append(piece)
        else:
            found[-1] = rest
            break
    return tuple(_cut(line.strip(), length) for line in found if line.strip())


def display_width(text: str) -> int:
    """Width in letters: wide East Asian signs count two."""
    return sum(2 if east_asian_width(sign) in "WF" else 1 for sign in text)


def _cut(text: str, length: int) -> str:
    ends = list(accumulate(map(display_width, text)))
    if not ends or ends[-1] <= length:
        return text
    return text[: max(bisect_right(ends, length - 1), 1)].rstrip() + "…"


def visible_token(token: str, length: int = 16) -> str:
    """A token with its outer spaces and its line breaks made visible, cut to `length` characters."""
    shown = clean(token)
    for space, sign in _SPACE.items():
        if space != " ":
            shown = shown.replace(space, sign)
    body = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" ")) if body else len(shown)
    trail = len(shown) - len(shown.rstrip(" ")) if body else 0
    return _cut("␣" * lead + body + "␣" * trail, length)
