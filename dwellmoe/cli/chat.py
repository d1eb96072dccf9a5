"""`dwellmoe chat`: a chat in the terminal with live figures of the cache."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import TextIOWrapper

from dwellmoe.serving.command_line import Options, check, parse
from dwellmoe.serving.settings import ChatSettings

USAGE = "dwellmoe chat MODEL [--adapter FOLDER] [--expert_budget 25%] [options]"
ABOUT = (
    "Chats with a model in the terminal, one message a line; below each reply stand live figures of the "
    "cache. /budget, /adapter, /stats and /help are commands within. MODEL is a folder, or a name on the hub."
)
PROMPT = "> "


def run(words: list[str]) -> None:
    """Chats until the input ends. Raises UserError."""
    options = parse_options(words)
    check(options)
    from rich.console import Console

    from dwellmoe.loading import quiet
    from dwellmoe.serving.served_model import load_served_model
    from dwellmoe.serving.terminal_chat import TerminalChat

    quiet()
    TerminalChat(load_served_model(options), options.own, Console(highlight=False)).run(_lines())


def parse_options(words: list[str]) -> Options:
    """The options of a command line. Raises UserError."""
    return parse(words, ChatSettings, USAGE, ABOUT)


def _lines() -> Iterable[bytes]:
    """The lines of standard input; in a terminal after a prompt, with keys that edit and repeat them."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return sys.stdin.buffer
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` then reads with it
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return _typed_lines()


def _typed_lines() -> Iterator[bytes]:
    while True:
        try:
            yield input(PROMPT).encode(errors="surrogateescape")
        except EOFError:
            return
