"""Which beginnings of a number can still become one within its bounds."""

from __future__ import annotations

import re

from discovery.json_form import Number

_BEGUN = re.compile(r"(-?)(0|[1-9][0-9]*)?(?:(\.)([0-9]*))?")


def can_begin(number: Number, text: str) -> bool:
    """Whether a number within the bounds begins so."""
    return _closest(number, text) is not None


def is_whole(number: Number, text: str) -> bool:
    """Whether the text is a number within the bounds."""
    parts = _BEGUN.fullmatch(text)
    if parts is None or not parts[2] or (parts[3] and not parts[4]) or not can_begin(number, text):
        return False
    value = _scaled(parts[2], parts[4] or "", number.decimals)
    return number.low <= (-value if parts[1] else value) <= number.high


def completed(number: Number, text: str) -> str:
    """The number within the bounds that begins so and is closest to zero."""
    value = _closest(number, text)
    assert value is not None
    digits = str(abs(value)).rjust(number.decimals + 1, "0")
    if number.decimals:
        digits = f"{digits[: -number.decimals]}.{digits[-number.decimals :]}".rstrip("0").rstrip(".")
    whole = ("-" if value < 0 else "") + digits
    if len(whole) < len(text):  # decimals of the beginning that are zeros
        whole += ("" if "." in whole else ".") + "0" * number.decimals
        whole = whole[: max(len(text), whole.index(".") + 2)]
    return whole


def _closest(number: Number, text: str) -> int | None:
    """The value closest to zero, in units of the last decimal, that a beginning can become; None where there is none."""
    parts = _BEGUN.fullmatch(text)
    if parts is None:
        return None
    sign, whole, point, decimals = parts.groups()
    if point and (not whole or not number.decimals or len(decimals) > number.decimals):
        return None
    low, high = (max(1, -number.high), -number.low) if sign else (max(0, number.low), number.high)
    if not text:  # every number begins with nothing: those below zero too
        low, high = number.low, number.high
        return min(max(low, 0), high)
    found = next((max(low, start) for start, end in _reach(number, whole, point, decimals)
                  if max(low, start) <= min(high, end)), None)  # fmt: skip
    return -found if found is not None and sign else found


def _reach(number: Number, whole: str | None, point: str | None, decimals: str | None) -> list[tuple[int, int]]:
    """Ranges of values, without sign, that the digits can become."""
    unit = 10**number.decimals
    if point:
        start = _scaled(whole or "0", decimals or "", number.decimals)
        return [(start, start + 10 ** (number.decimals - len(decimals or "")) - 1)]
    if whole is None:
        return [(0, max(abs(number.low), abs(number.high)))]
    longest = len(str(max(abs(number.low), abs(number.high)) // unit))
    more = range(max(0, longest - len(whole)) + 1) if whole != "0" else range(1)
    return [(int(whole) * 10**j * unit, (int(whole) + 1) * 10**j * unit - 1) for j in more]


def _scaled(whole: str, decimals: str, places: int) -> int:
    return int(whole + decimals) * 10 ** (places - len(decimals))
