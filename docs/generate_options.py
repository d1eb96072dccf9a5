"""Writes docs/options.md from the dataclasses of settings and the parsers of the `dwellmoe` command.

python docs/generate_options.py
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dwellmoe.cli.apply import apply_parser
from dwellmoe.cli.chat import ABOUT as ABOUT_CHAT
from dwellmoe.cli.export_options import export_parser
from dwellmoe.cli.pack import pack_parser
from dwellmoe.cli.record import record_parser
from dwellmoe.cli.serve import ABOUT as ABOUT_SERVING
from dwellmoe.cli.simulate_options import simulate_parser
from dwellmoe.data.settings import DataSettings
from dwellmoe.evaluation.settings import CacheSettings, EvaluationSettings
from dwellmoe.files import replacing
from dwellmoe.harness.settings import HarnessSettings
from dwellmoe.locality.settings import AdapterSettings, LocalitySettings
from dwellmoe.serving.settings import ChatSettings, ServingSettings
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings.streaming import StreamingSettings
from dwellmoe.settings.trainer import TrainerSettings

PAGE = Path(__file__).resolve().parent / "options.md"
INTRODUCTION = """# Options

Written by `make docs` from the code; do not edit. `main.py` trains, `inference.py` evaluates and chats.
`--config FILE.yaml` gives options from a file, which the command line overrides; `--plugin FILE` imports a
Python file of yours first ([extending](extending.md)).
"""
ALSO_SERVING = (
    "The options of [model](#model) and [expert cache](#expert-cache) work too; with `--routing_strategy` "
    "the cache of `--expert_budget` itself is what it looks at."
)
BOTH = "`main.py` and `inference.py`"
SECTIONS: tuple[tuple[str, str, Any], ...] = (
    ("Model", BOTH, ModelSettings),
    ("Data", BOTH, DataSettings),
    ("Adapter", BOTH + "; `inference.py` uses `--lora_save_path` and `--use_lora`", AdapterSettings),
    ("Locality", "`main.py`", LocalitySettings),
    (
        "Streaming",
        "`main.py`; `inference.py` has an `--expert_budget` of its own, of the [expert cache](#expert-cache)",
        StreamingSettings,
    ),
    (
        "Trainer",
        "`main.py`; all of transformers' `TrainingArguments` work too, and `--help_all` lists them",
        TrainerSettings,
    ),
    ("Evaluation", "`inference.py`", EvaluationSettings),
    (
        "Expert cache",
        "`inference.py`; `EngineSettings` in Python has the first ones, with an `expert_budget` of 25%",
        CacheSettings,
    ),
    (
        "lm-eval",
        "`dwellmoe lm-eval`, with the options of [Model](#model) and [Expert cache](#expert-cache)",
        HarnessSettings,
    ),
)


class Option(NamedTuple):
    """One row of a table."""

    name: str
    default: str
    about: str


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_settings(), *_commands()])


def _settings() -> Iterator[str]:
    for title, used_by, kind in SECTIONS:
        yield f"## {title}\n\n{used_by}.\n\n{_table(_options_of(kind))}"


def _options_of(kind: Any) -> Iterator[Option]:
    """The options that a dataclass of settings describes."""
    for field in dataclasses.fields(kind):
        names = ", ".join(f"`{name}`" for name in (f"--{field.name}", *field.metadata.get("aliases", ())))
        yield Option(names, _default(field.default), field.metadata["help"])


def _commands() -> Iterator[str]:
    for name, about, kind in (("serve", ABOUT_SERVING, ServingSettings), ("chat", ABOUT_CHAT, ChatSettings)):
        yield f"## dwellmoe {name}\n\n{about} {ALSO_SERVING}\n\n{_table(_options_of(kind))}"
    for parser in (simulate_parser(), export_parser()):
        yield f"## {parser.prog}\n\n{parser.description}\n"
        for name, command in _subcommands(parser).items():
            yield f"### {parser.prog} {name}\n\n{_sentence(command.description)}\n"
            yield _table(_arguments(command))
    for parser in (record_parser(), apply_parser(), pack_parser()):
        yield f"## {parser.prog}\n\n{_sentence(parser.description)}\n\n{_table(_arguments(parser))}"


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name of a subcommand -> its parser."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """The required arguments of a parser first."""
    for action in sorted(parser._actions, key=lambda action: not action.required):
        if action.default != argparse.SUPPRESS:
            name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            default = "required" if action.required else _default(action.default)
            yield Option(f"`{name}`", default, action.help or "")


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    words = value if isinstance(value, list) else [value]
    return f"`{' '.join(map(str, words))}`"


def _escaped(about: str) -> str:
    """A help text as Markdown: without argparse's doubled percent signs."""
    return about.replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")


def _without_default(about: str) -> tuple[str, str]:
    """A help text, and the default that it names in brackets at its end."""
    found = re.fullmatch(r"(.*?) ?\[([^\]]*)\]", about)
    return (found[1], found[2]) if found else (about, "")


def _sentence(text: str | None) -> str:
    text = text or ""
    return text[:1].upper() + text[1:].removesuffix(".") + "."


def _table(options: Iterable[Option]) -> str:
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for name, default, about in options:
        about, worked_out = _without_default(_escaped(about))
        lines.append(f"| {name} | {default or worked_out} | {about} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    with replacing(PAGE) as file:
        file.write(page().encode())


if __name__ == "__main__":
    main()
