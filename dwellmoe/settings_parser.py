"""Fills dataclasses of settings from the command line and from YAML files, without importing torch.

A mistake is one line that names the option, its value and the choices.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from typing import Any

from dwellmoe.argument_parser import (
    Parser,
    boolean,
    json_object,
    real_number,
    stray_word,
    unknown_option,
    warn_of_repeated,
    whole_number,
)
from dwellmoe.config_file import split_config
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once
from dwellmoe.options import split_list

VALUES: dict[Any, tuple[str, Callable[[str], Any]]] = {
    dict: ("JSON", json_object),
    str: ("TEXT", str),
    list[str]: ("LIST", split_list),
    float: ("X", real_number),
    int: ("N", whole_number),
    bool: ("BOOL", boolean),
}
"""Type of a field -> the name of its value in help texts, and what reads it; of several types the first."""
HELP = ("-h", "--help", "--help_all")
END = (
    "--config FILE.yaml takes options from a file, which the command line overrides; --plugin FILE imports a "
    "Python file of yours first.{}"
)


class SettingsParser:
    """Parses several dataclasses; `given` then holds the names of the options that the user gave.

    `usage` is a command line that works, `rarely` the options that only `--help_all` shows.
    """

    def __init__(
        self, kinds: tuple[Any, ...], usage: str = "", about: str = "", rarely: Collection[str] = ()
    ) -> None:
        self._kinds = kinds
        self._usage = usage
        self._about = about
        self._rarely = rarely
        self.given: set[str] = set()
        self._parser = self._build(everything=True)

    @property
    def options(self) -> list[str]:
        """Every option, as `--name`."""
        return [name for name in self._parser._option_string_actions if not name.startswith("--no_")]

    def parse(self, arguments: list[str]) -> tuple:
        """The filled dataclasses, in order; the command line overrides what `--config FILE.yaml` gives.

        Options that are not given keep their default. Raises UserError, also where nothing is given.
        """
        if found := {*HELP} & {*arguments}:
            self._build(everything="--help_all" in found).print_help()
            raise SystemExit(0)
        if all(word.startswith("--local_rank") for word in arguments):  # which deepspeed adds
            raise UserError(f"no options: give at least those of {self._usage}; --help lists them all")
        from_files, typed = map(self._words, split_config(arguments))
        words = from_files + typed
        self.given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        origins = [(word, " (--config)") for word in from_files] + [(word, "") for word in typed]
        warn_of_repeated(origins, self._parser._option_string_actions)
        values, stray = self._parser.parse_known_args(words)
        if stray:
            raise stray_word(stray[0])
        return tuple(_filled(kind, vars(values)) for kind in self._kinds)

    def warn_without_effect(self, names: Collection[str], command: str) -> None:
        """Says which of the given options, by name, `command` does not use."""
        if unused := sorted(self.given & {*names}):
            listed = ", ".join(f"--{name}" for name in unused)
            warn_once(f"warning: {command} does not use {listed}")

    def _words(self, arguments: list[str]) -> list[str]:
        """The command line with `_` in names. A value that begins with `-` is bound to its option by `=`:
        argparse would take it for an option. UserError for an unknown option.
        """
        words: list[str] = []
        for word in arguments:
            name, equals, value = word.partition("=")
            if word == "--":  # argparse would drop it
                raise stray_word(word)
            if _is_option(name):
                words.append(self._known(name) + equals + value)
            elif word.startswith("-") and words and words[-1].startswith("--") and "=" not in words[-1]:
                words[-1] += f"={word}"
            else:
                words.append(word)
        return words

    def _known(self, name: str) -> str:
        """The option with `_` in its name. UserError for one that does not exist."""
        option = f"--{name.lstrip('-').replace('-', '_')}"
        if name.startswith("--") and option in self._parser._option_string_actions:
            return option
        raise unknown_option(name, self.options)

    def _build(self, everything: bool) -> Parser:
        more = "" if everything or not self._rarely else " --help_all shows the options left out here."
        parser = Parser(
            prog=" ".join(self._usage.split()[:2]),
            usage=self._usage.replace("%", "%%"),  # which argparse takes for a format
            description=self._about,
            epilog=END.format(more),
            add_help=False,
            argument_default=argparse.SUPPRESS,
        )
        for kind in self._kinds:
            group = parser.add_argument_group(_title(kind))
            allowed = typing.get_type_hints(kind)
            for entry in dataclasses.fields(kind):
                hidden = not everything and entry.name in self._rarely
                _add_option(group, entry, allowed[entry.name], hidden)
        return parser


def _is_option(word: str) -> bool:
    """Whether a word is an option rather than a value that begins with `-`: a number, a text, `-` itself."""
    return word.startswith("-") and any(map(str.isalpha, word)) and " " not in word and not _is_number(word)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _title(kind: Any) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0].removesuffix(".")


def _add_option(group: Any, entry: dataclasses.Field, annotation: Any, hidden: bool) -> None:
    """One field as an option. A switch may stand without a value, and as `--no_name` where it is on."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    allowed = typing.get_args(annotation) if union else (annotation,)
    kind = next(kind for kind in VALUES if kind in allowed)
    metavar, parse = VALUES[kind]
    names = [f"--{entry.name}", *entry.metadata.get("aliases", ())]
    text = argparse.SUPPRESS if hidden else _help(entry)
    switch = {"nargs": "?", "const": True} if kind is bool else {}
    group.add_argument(*names, type=parse, metavar=metavar, help=text, **switch)
    if kind is bool and entry.default:
        no = {"action": "store_false", "dest": entry.name, "help": argparse.SUPPRESS}
        group.add_argument(f"--no_{entry.name}", **no)


def _help(entry: dataclasses.Field) -> str:
    text, default = entry.metadata["help"], entry.metadata.get("default", entry.default)
    stated = default in (None, "", False) or text.endswith("]")
    return (text if stated else f"{text} [{default}]").replace("%", "%%")


def _filled(kind: Any, values: dict[str, Any]) -> Any:
    names = {entry.name for entry in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})
