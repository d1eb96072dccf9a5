"""Fills dataclasses of settings from the command line and from YAML files.

A mistake is one line that names the option, its value and the choices.
"""

import dataclasses
import difflib
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from dwellmoe.errors import UserError, first_line
from dwellmoe.registry import take_plugins


class SettingsParser(HfArgumentParser):
    """Parses several dataclasses; `given` then holds the names of the options that the user gave."""

    def add_argument(self, *names: Any, **options: Any) -> Any:
        return super().add_argument(*names, **{k: v for k, v in options.items() if k != "range"})

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("argument ", "option ", 1))

    def parse(self, arguments: list[str]) -> tuple:
        """The filled dataclasses, in order; the command line overrides what `--config FILE.yaml` gives."""
        arguments = take_plugins(_expand_config(arguments))
        named = [argument[2:] for argument in arguments if argument.startswith("--")]
        self.given = {name.split("=")[0].replace("-", "_") for name in named}
        self._reject_unknown(arguments)
        return self.parse_args_into_dataclasses(arguments, look_for_args_file=False)

    def _reject_unknown(self, arguments: list[str]) -> None:
        for argument in arguments:
            name = argument.split("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                close = difflib.get_close_matches(name, self._option_string_actions, n=3, cutoff=0.5)
                hint = f": did you mean {', '.join(close)}?" if close else "; --help lists the options"
                raise UserError(f"unknown option '{name}'{hint}")

    def warn_without_effect(self, settings: type, command: str) -> None:
        """Prints which of the given options `command` does not use."""
        names = sorted(self.given & {entry.name for entry in dataclasses.fields(settings)})
        if names:
            print(
                f"warning: {command} does not use {', '.join('--' + name for name in names)}", file=sys.stderr
            )


def settings_parser(kinds: tuple[Any, ...], description: str) -> SettingsParser:
    """A parser of the given settings; option names must be written out in full."""
    return SettingsParser(kinds, description=description, allow_abbrev=False)


def _expand_config(arguments: list[str]) -> list[str]:
    if "--config" not in arguments:
        return arguments
    i = arguments.index("--config")
    if i + 1 == len(arguments):
        raise UserError("option --config: a path to a YAML file is missing")
    return _options_of(Path(arguments[i + 1])) + arguments[:i] + arguments[i + 2 :]


def _options_of(path: Path) -> list[str]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML: {first_line(error)}") from None
    if not isinstance(table, dict):
        raise UserError(f"--config {path}: expected options and values, found {type(table).__name__}")
    return [text for name, value in table.items() for text in (f"--{name}", str(value))]
