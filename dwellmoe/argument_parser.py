"""argparse with this project's errors: one line that names the option, its value and what it takes."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once
from dwellmoe.options import Range

WIDTH = 120
"""Columns of a help page, also where the terminal has fewer: it wraps a line, the page keeps its length."""
_TRUE, _FALSE = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")
_LONGEST_VALUE = 60
"""Characters of a wrong value that a message repeats."""


class Parser(argparse.ArgumentParser):
    """An argument parser that wants names in full, and whose errors are a UserError."""

    def __init__(self, **options: Any) -> None:
        layout = partial(argparse.HelpFormatter, max_help_position=36, width=WIDTH)
        super().__init__(**{"formatter_class": layout, "allow_abbrev": False, **options})

    def parse_args(self, args=None, namespace=None) -> Any:  # type: ignore[override]
        """The options. UserError also for an unknown option, before what is missing, and for a stray word."""
        words = sys.argv[1:] if args is None else list(args)
        actions = self._actions_of(words)
        known = list(actions)
        for name in (word.partition("=")[0] for word in words):
            if name.startswith("--") and name != "--" and name not in known:
                raise unknown_option(name, known)
        warn_of_repeated([(word, "") for word in words], actions)
        found, stray = self.parse_known_args(words, namespace)
        if stray:
            raise stray_word(stray[0])
        return found

    def _actions_of(self, words: Sequence[str]) -> dict[str, argparse.Action]:
        """The options of this parser and of the command that the words name."""
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += [action.choices[word] for word in words if word in action.choices][:1]
        return {name: action for parser in parsers for name, action in parser._option_string_actions.items()}

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('argument ', 'option ', 1)}; see {self.prog} --help")


def warn_of_repeated(words: Iterable[tuple[str, str]], actions: Mapping[str, argparse.Action]) -> None:
    """Says which options are given more than once, with every value: argparse takes the last in silence.

    `words`: each with where it is from, such as " (--config)"; `actions`: option -> what argparse does.
    """
    given: dict[str, list[str]] = {}
    current = ""
    for word, origin in words:
        name = word.partition("=")[0]
        if name in actions:
            given.setdefault(current := actions[name].dest, []).append(word.replace("=", " ", 1) + origin)
        elif given:
            given[current][-1] += f" {word}"
    for texts in given.values():
        if len(texts) > 1:
            warn_once(f"warning: given more than once: {', '.join(texts)}: the last one counts")


def number(kind: type, *, most: float, least: float | None = None, above: float | None = None) -> Callable:
    """The `type` of an argparse option: an int or a float in a range."""
    allowed = Range(least, most, above)

    def parse(text: str) -> Any:
        value = (whole_number if kind is int else real_number)(text)
        if value not in allowed:
            raise argparse.ArgumentTypeError(f"{shown(text)} must be {allowed}")
        return value

    return parse


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None


def real_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None


def boolean(text: str) -> bool:
    """True or False, as argparse itself does not read them."""
    for value, words in {True: _TRUE, False: _FALSE}.items():
        if text.lower() in words:
            return value
    raise argparse.ArgumentTypeError(f"{shown(text)} is neither True nor False")


def json_object(text: str) -> Any:
    """A JSON object; a text that does not begin like one, such as a path, as it is."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not JSON: {error}") from None


def unknown_option(name: str, known: Iterable[str]) -> UserError:
    """The error for an option that does not exist, with the nearest ones."""
    close = difflib.get_close_matches(f"--{name.lstrip('-')}", known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "--help lists the options"
    return UserError(f"unknown option {shown(name)}: {hint}")


def stray_word(word: str) -> UserError:
    """The error for a word that belongs to no option."""
    return UserError(f"stray word {shown(word)}: a value follows its option, as in --name value")


def shown(text: str) -> str:
    """A wrong value as messages repeat it."""
    return repr(text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}...")
