"""The entry point of the `dwellmoe` command: finds the command by name and runs it."""

import importlib
import sys

from dwellmoe.errors import needs, run_command, unknown_name
from dwellmoe.registry import take_plugins

COMMANDS = {
    "simulate": "replay recorded routing through expert caches: hit rates, memory plans, stall time",
    "pack": "write a checkpoint's experts as one contiguous record each, for faster reading",
    "export": "hand a trained adapter to other programs: routers alone, GGUF, other layouts, merged",
    "apply": "put a file of tuned routers on a copy of their base",
}
"""Command -> what it does; the module of that name beside this one has `run(words)`."""
EXTRAS = {"simulate": "sim", "pack": "offload", "export": "export", "apply": "offload"}
"""Command -> the extra of the package that brings what it imports."""


def main() -> None:
    run_command(lambda: run(sys.argv[1:]))


def run(words: list[str]) -> None:
    """Runs one command line. UserError for an unknown command."""
    words = take_plugins(words)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] not in COMMANDS:
        raise unknown_name("command", words[0], COMMANDS)
    with needs(EXTRAS[words[0]]):
        importlib.import_module(f"dwellmoe.cli.{words[0]}").run(words[1:])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        ["usage: dwellmoe COMMAND [options]", "", *lines, "", "dwellmoe COMMAND --help says more"]
    )
