"""Evaluates a small LaTeX expression at fixed values of its letters, by a parser of its own; runs no code.

Recursive descent over a small grammar: numbers, letters, + - * / ^ !, fractions, roots, brackets, a few
functions. Length, depth and the size of exact numbers are bounded, so no input is expensive.
"""

import cmath
import math
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 400
DEEPEST = 40
MOST_DIGITS = 50
MOST_BITS = 10_000
POINTS = 3
TOLERANCE = 1e-9
Value = Fraction | complex
Values = tuple[Value, ...]
"""An expression's value at each of the fixed points."""

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\[a-zA-Z]+)|([a-zA-Z])|([-+*/^!()\[\]{}|]))")
_TIMES, _OVER = {"*", r"\cdot", r"\times"}, {"/", r"\div"}
_CLOSING = {"(": ")", "[": "]", "{": "}", "|": "|"}
_CONSTANTS = {r"\pi": complex(math.pi), "e": complex(math.e), "i": 1j}
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    **{rf"\{name}": getattr(cmath, name) for name in ("sin", "cos", "tan", "exp", "log")},
    r"\ln": cmath.log,
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
}
_LETTERS = {rf"\{name}" for name in ("alpha", "beta", "gamma", "theta", "lambda", "omega", "phi", "infty")}


class Unreadable(ValueError):
    """Not an expression of this grammar, or one without a value."""


def evaluate(text: str) -> Values:
    """The values of an expression at the fixed points. Raises Unreadable."""
    try:
        return tuple(_Parser(_tokens(text), point).parse() for point in range(POINTS))
    except (ArithmeticError, ValueError) as error:
        raise Unreadable(str(error)) from None


def same_values(one: Values, other: Values) -> bool:
    """Whether all values are equal: exactly where both are exact, else within 1e-9, relative above 1."""
    return all(map(_close, one, other))


def _close(one: Value, other: Value) -> bool:
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    return abs(complex(one) - complex(other)) <= TOLERANCE * max(1.0, abs(complex(one)))


def _tokens(text: str) -> list[str]:
    # Three letters and more are a word, not a product.
    if len(text) > LONGEST or re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{3}", text):
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
    """One pass over the tokens, with the letters' values at one point."""

    def __init__(self, tokens: list[str], point: int):
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
        while self._next is not None and self._next not in ("+", "-", ")", "]", "}", "|"):
            if self._next in _OVER:
                self._take()
                value = value / self._signed()
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
            value = _raised(value, self._argument())
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
            return Fraction(abs(value)) if token == "|" and isinstance(value, Fraction) else value
        if token == r"\frac":
            numerator = self._argument()
            return numerator / self._argument()
        if token == r"\sqrt":
            return self._root()
        if token in _FUNCTIONS:
            return _FUNCTIONS[token](complex(self._power()))
        return self._letter(token)

    def _number(self, token: str) -> Value:
        value = Fraction(token)
        mixed = self._tokens[self._position : self._position + 7]
        form = [r"\frac", "{", None, "}", "{", None, "}"]
        if token.isdigit() and len(mixed) == len(form) and all(map(_fits, mixed, form)):
            return value + self._atom()
        return value

    def _root(self) -> Value:
        degree: Value = Fraction(2)
        if self._next == "[":
            self._take()
            degree = self._sum()
            self._take("]")
        return _raised(self._argument(), 1 / degree)

    def _letter(self, token: str) -> Value:
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if not (len(token) == 1 and token.isalpha()) and token not in _LETTERS:
            raise Unreadable
        number = ord(token) if len(token) == 1 else 200 + sorted(_LETTERS).index(token)
        return Fraction(number * (self._point + 2) % 97 + 2, 11 + self._point) * (-1) ** self._point


def _fits(token: str, wanted: str | None) -> bool:
    return token.isdigit() if wanted is None else token == wanted


def _raised(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(exponent.numerator)
        if bits > MOST_BITS:
            raise Unreadable
        return base**exponent.numerator
    return complex(base) ** complex(exponent)


def _factorial(value: Value) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 100:
        raise Unreadable
    return Fraction(math.factorial(value.numerator))
