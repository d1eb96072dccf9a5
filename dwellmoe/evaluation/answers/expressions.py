"""Evaluates a small LaTeX expression at fixed values of its letters, by a parser of its own; runs no code.

Recursive descent over a small grammar: numbers, letters, + - * / ^ !, fractions, roots, brackets, a few
functions. Length, depth and the size of numbers are bounded, so no input is expensive.

What is not exact is computed twice, with 30 and with 60 digits. Where the two differ there is no value, but
that of a difference of equals, which is zero however small the digits left of it.
"""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

LONGEST = 400
DEEPEST = 40
MOST_DIGITS = 50
MOST_BITS = 10_000
POINTS = 3
TOLERANCE = mpmath.mpf("1e-9")
"""For a decimal number that stands for a root, relative; two expressions without one must agree further."""
SYMBOLIC_TOLERANCE = mpmath.mpf("1e-20")
Value = Any
"""A Fraction where it is exact, else a real or complex number of mpmath."""
Values = tuple[Value, ...]
"""An expression's value at each of the fixed points."""
_ROUGH, _FINE = mpmath.MPContext(), mpmath.MPContext()
_ROUGH.dps, _FINE.dps = 30, 60
_VANISHES = 2**-40
"""The digits left of a difference of equals shrink by more than this from 30 to 60 digits."""
_MOST_MAGNITUDE = 20
"""Sines and powers are taken of exponents and angles below 2^20."""

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[a-zA-Z]+)|([a-zA-Z])|([-+*/^!()\[\]{}|_]))")
_NO_PRODUCT = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3}|(?<!frac)(?<!frac )\b\d+\s+\d")
"""A word of three letters or more, or two numbers side by side."""
_PLAIN_FRACTION = re.compile(r"\\frac(?:\{\d+\}|\d)(?:\{\d+\}|\d)")
"""Of two whole numbers: after a whole number it is added to it."""
_TIMES, _OVER = {"*", r"\cdot", r"\times"}, {"/", r"\div"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
_ROUNDED = {r"\lfloor": math.floor, r"\lceil": math.ceil}
_INVERSES = {name: f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")}
_FUNCTIONS = {
    **{rf"\{name}": name for name in ("exp", "log", "ln", *_INVERSES)},
    **{rf"\arc{name}": inverse for name, inverse in _INVERSES.items()},
}
_LETTERS = {rf"\{name}" for name in ("alpha", "beta", "gamma", "theta", "lambda", "omega", "phi", "infty")}


class Unreadable(ValueError):
    """Not an expression of this grammar, or one without a value."""


def evaluate(text: str) -> Values:
    """The values of an expression at the fixed points. Raises Unreadable."""
    values = _values(text)
    if values is None:
        raise Unreadable(text)
    return values


@lru_cache(maxsize=4096)
def _values(text: str) -> Values | None:
    try:
        tokens = _tokens(text)
        fine = [_Parser(tokens, point, _FINE).parse() for point in range(POINTS)]
        if all(isinstance(value, Fraction) for value in fine):
            return tuple(fine)
        rough = [_Parser(tokens, point, _ROUGH).parse() for point in range(POINTS)]
        return tuple(map(_settled, rough, fine))
    except (ArithmeticError, ValueError, RecursionError):
        return None


def _settled(rough: Value, fine: Value) -> Value:
    """A value that both precisions agree on; zero where only digits of a difference of equals are left."""
    if _close(rough, fine):
        return fine
    if abs(fine) <= abs(rough) * _VANISHES or rough == 0:
        return Fraction(0)
    raise Unreadable


def same_values(one: Values, other: Values) -> bool:
    """Whether all values are equal: exactly where both are exact, else within a relative tolerance."""
    return all(map(_close, one, other))


def _close(one: Value, other: Value) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    tolerance = TOLERANCE if isinstance(one, Fraction) or isinstance(other, Fraction) else SYMBOLIC_TOLERANCE
    first, second = _FINE.convert(one), _FINE.convert(other)
    return abs(first - second) <= tolerance * max(abs(first), abs(second))


def _tokens(text: str) -> list[str]:
    if len(text) > LONGEST or _NO_PRODUCT.search(text):
        raise Unreadable
    tokens = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or len(found[0]) > MOST_DIGITS:
            raise Unreadable
        tokens.append(found[0].strip())
        position = found.end()
    return tokens


class _Parser:
    """One pass over the tokens, with the letters' values at one point, in a context of mpmath."""

    def __init__(self, tokens: list[str], point: int, maths: Any):
        self._maths = maths
        self._tokens = tokens
        self._position = 0
        self._depth = 0
        self._point = point

    def parse(self) -> Value:
        value = self._sum()
        if self._next is not None:
            raise Unreadable
        return value

    @property
    def _next(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self, wanted: str | None = None) -> str:
        token = self._next
        if token is None or wanted not in (None, token):
            raise Unreadable
        self._position += 1
        return token

    def _sum(self) -> Value:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable
        value = self._product()
        while self._next in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            value = value + sign * self._product()
        self._depth -= 1
        return value

    def _product(self) -> Value:
        value = self._signed()
        while self._next is not None and self._next not in ("+", "-", *_CLOSING.values()):
            if self._next in _OVER:
                self._take()
                value = self._quotient(value, self._signed())
            elif self._next in _TIMES:
                self._take()
                value = value * self._signed()
            else:
                value = value * self._power()
        return value

    def _signed(self) -> Value:
        sign = 1
        while self._next in ("+", "-"):
            sign *= 1 if self._take() == "+" else -1
        return sign * self._power()

    def _power(self) -> Value:
        value = self._atom()
        while self._next == "!":
            self._take()
            value = _factorial(value)
        if self._next == "^":
            self._take()
            value = self._raised(value, self._argument())
        return value

    def _argument(self) -> Value:
        """The argument of a command or of `^`: a group in braces, or one digit or letter."""
        token = self._next
        if token is not None and re.fullmatch(r"\d{2,}", token):
            self._tokens = [*self._tokens[: self._position], *token, *self._tokens[self._position + 1 :]]
        if token == "-":
            self._take()
            return -self._argument()
        return self._atom()

    def _atom(self) -> Value:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return self._number(token)
        if token in _CLOSING:
            value = self._sum()
            self._take(_CLOSING[token])
            return (
                abs(value)
                if token == "|"
                else _rounded(_ROUNDED[token], value)
                if token in _ROUNDED
                else value
            )
        if token == r"\frac":
            numerator = self._argument()
            return self._quotient(numerator, self._argument())
        if token == r"\sqrt":
            return self._root()
        if token == r"\binom":
            of = self._argument()
            return _binomial(of, self._argument())
        if token in _FUNCTIONS:
            return self._applied(_FUNCTIONS[token])
        return self._letter(token)

    def _number(self, token: str) -> Value:
        value = Fraction(token)
        if token.isdigit() and _PLAIN_FRACTION.match(
            "".join(self._tokens[self._position : self._position + 7])
        ):
            return value + self._atom()
        return value

    def _root(self) -> Value:
        degree: Value = Fraction(2)
        if self._next == "[":
            self._take()
            degree = self._sum()
            self._take("]")
        return self._raised(self._argument(), self._quotient(Fraction(1), degree))

    def _quotient(self, value: Value, divisor: Value) -> Value:
        return value / divisor if isinstance(divisor, Fraction) else self._maths.convert(value) / divisor

    def _applied(self, name: str) -> Value:
        r"""A function of what follows, such as `\log_2 8`, `\sin^2 x`, `\sin^{-1} x`."""
        base = self._argument() if name == "log" and self._took("_") else None
        exponent = self._argument() if self._took("^") else Fraction(1)
        if exponent == -1 and name in _INVERSES:
            name, exponent = _INVERSES[name], Fraction(1)
        value = self._function(name, self._power())
        if base is not None:
            value = self._quotient(value, self._function(name, base))
        return value if exponent == 1 else self._raised(value, exponent)

    def _took(self, token: str) -> bool:
        taken = self._next == token
        self._position += taken
        return taken

    def _function(self, name: str, value: Value) -> Value:
        value = self._maths.convert(value)
        if name not in ("log", "ln") and self._maths.mag(value) > _MOST_MAGNITUDE:
            raise Unreadable
        return self._finite(getattr(self._maths, name)(value))

    def _raised(self, base: Value, exponent: Value) -> Value:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
            if bits > MOST_BITS:
                raise Unreadable
            return base**exponent.numerator
        base, exponent = self._maths.convert(base), self._maths.convert(exponent)
        if base == 0:
            return base**exponent
        if self._maths.mag(exponent * self._maths.log(base)) > _MOST_MAGNITUDE:
            raise Unreadable
        return self._finite(self._maths.power(base, exponent))

    def _finite(self, value: Value) -> Value:
        if not self._maths.isfinite(value):
            raise Unreadable
        return value

    def _letter(self, token: str) -> Value:
        if token in ("e", "i", r"\pi"):
            return {"e": self._maths.e, "i": self._maths.j, r"\pi": self._maths.pi}[token] * 1
        if not (len(token) == 1 and token.isalpha()) and token not in _LETTERS:
            raise Unreadable
        number = ord(token) if len(token) == 1 else 200 + sorted(_LETTERS).index(token)
        return Fraction(number * (self._point + 2) % 97 + 2, 11 + self._point) * (-1) ** self._point


def _factorial(value: Value) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 100:
        raise Unreadable
    return Fraction(math.factorial(value.numerator))


def _binomial(of: Value, chosen: Value) -> Fraction:
    return _factorial(of) / (_factorial(chosen) * _factorial(of - chosen))


def _rounded(rounding: Callable[[Fraction], int], value: Value) -> Fraction:
    if not isinstance(value, Fraction):
        raise Unreadable
    return Fraction(rounding(value))
