"""`dwellmoe chat`: a chat in the terminal with live figures of the cache."""

import sys

from dwellmoe.serving.command_line import Options, check, parse
from dwellmoe.serving.settings import ChatSettings

USAGE = "dwellmoe chat MODEL [--adapter FOLDER] [--expert_budget 25%] [options]"
ABOUT = (
    "Chats with a model in the terminal, one message a line; below each reply stand live figures of the "
    "cache. /budget, /adapter, /stats and /help are commands within. MODEL is a folder, or a name on the hub."
)


def run(words: list[str]) -> None:
    """Chats until the input ends. Raises UserError."""
    options = parse_options(words)
    check(options)
    from rich.console import Console

    from dwellmoe.loading import quiet
    from dwellmoe.serving.served_model import load_served_model
    from dwellmoe.serving.terminal_chat import TerminalChat

    quiet()
    TerminalChat(load_served_model(options), options.own, Console(highlight=False)).run(sys.stdin.buffer)


def parse_options(words: list[str]) -> Options:
    """The options of a command line. Raises UserError."""
    return parse(words, ChatSettings, USAGE, ABOUT)
