"""SVG pieces that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence

from graphs.escape import xml_text
from graphs.named import COLOURS, Verdict

_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
INK, GREY = "#222222", "#707070"


def svg_text(
    text: str,
    x: float | int,
    y: float | int,
    size: float | int,
    colour: str = INK,
    anchor: str = "start",
    bold: bool = False,
    turn: int = 0,
) -> str:
    """One line of text, escaped. anchor: start, middle or end; turn: degrees clockwise around (x, y)."""
    more = f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += ' font-weight="bold"' if bold else ""
    more += f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{colour}"{more}>{xml_text(text)}</text>'


def svg_title(text: str) -> str:
    """A tooltip (or, at the top, the document's title), escaped."""
    return f"<title>{xml_text(text)}</title>"


def svg_verdict(outcome: Verdict, x: float | int, y: float | int) -> str:
    """The sign of a causal test's outcome, a tick or a cross, 7 pixels wide, around a place."""
    path = (
        f"M{x - 3.5:.1f} {y:.1f}l2.5 2.7l4.5 -5.6"
        if outcome == "passed"
        else (f"M{x - 2.6:.1f} {y - 2.6:.1f}l5.2 5.2m0 -5.2l-5.2 5.2")
    )
    return f'<path d="{path}" fill="none" stroke="{COLOURS[outcome]}" stroke-width="1.6" stroke-linecap="round"/>'


def svg_page(title: str, width: float | int, height: float | int, body: Sequence[str]) -> bytes:
    """A whole document on a white ground."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONT}" role="img">',
        svg_title(title),
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *body,
        "</svg>\n",
    )
    return "\n".join(lines).encode("utf-8")
