"""Reads the number in an answer, exactly and without evaluating code."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 50
MAX_EXPONENT = 300
LONGEST = 10_000
"""Characters of a text that are searched for its first number."""
RELATIVE_TOLERANCE = Fraction(1, 10_000)
"""For results that are not whole numbers, which references round to different lengths."""

_SIGN = r"[-+\u2212\u2013]?"
_PLAIN = r"(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?=[-+\u2212\u2013$€£¥.\d])(?P<sign>{_SIGN})\s{{0,3}}[$€£¥]?\s{{0,3}}(?P<second_sign>{_SIGN})"
    rf"(?:(?P<whole>\d+)\s{{1,3}}(?P<mixed_over>\d+)/(?P<mixed_under>\d+)"
    rf"|(?P<plain>{_PLAIN})(?:\s{{0,3}}/\s{{0,3}}(?P<under>{_PLAIN}))?"
    rf"(?:[eE](?P<exponent>[-+]?\d+)|\s{{0,3}}[x×*]\s{{0,3}}10\s{{0,3}}(?:\^|\*\*)\s{{0,3}}\(?(?P<power>[-+\u2212]?\d+)\)?)?)"
    r"\s{0,3}(?P<percent>%|percent\b)?"
)


@dataclass(frozen=True)
class Number:
    """An exact value, as written: `50 %` has the value 50 and is a percentage."""

    value: Fraction
    is_percentage: bool = False


def parse_number(text: str) -> Number | None:
    """The first number in a text, or None: `1,234.5`, `3/4`, `1 1/2`, `$-7`, `12 %`, `1.2e-3`, `5 x 10^4`.

    None also for a number beyond 50 digits or 10^300, or with a denominator of zero.
    """
    found = _NUMBER.search(text, 0, LONGEST)
    value = _value(found) if found else None
    if found is None or value is None:
        return None
    negative = (_is_minus(found["sign"]) + _is_minus(found["second_sign"])) % 2
    return Number(-value if negative else value, found["percent"] is not None)


def same_number(one: Number, other: Number) -> bool:
    """Equal if whole, else within 0.01 %; if only one has a percent sign, `50 %` equals both 50 and 0.5."""
    if one.is_percentage == other.is_percentage:
        return _close(one.value, other.value)
    percentage, plain = (one, other) if one.is_percentage else (other, one)
    return _close(percentage.value, plain.value) or _close(percentage.value / 100, plain.value)


def _close(one: Fraction, other: Fraction) -> bool:
    if one.denominator == 1 and other.denominator == 1:
        return one == other
    return abs(one - other) <= RELATIVE_TOLERANCE * max(abs(one), abs(other))


def _value(found: re.Match) -> Fraction | None:
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"[\d.,]+", found.group())):
        return None
    try:
        if found["whole"]:
            return int(found["whole"]) + Fraction(int(found["mixed_over"]), int(found["mixed_under"]))
        value = _plain(found["plain"]) / _plain(found["under"] or "1")
    except ZeroDivisionError:
        return None
    exponent = int((found["exponent"] or found["power"] or "0").replace("\u2212", "-"))
    return value * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None


def _plain(digits: str) -> Fraction:
    return Fraction(re.sub("[,\u00a0\u2009\u202f]", "", digits))


def _is_minus(sign: str) -> bool:
    return sign not in ("", "+")
