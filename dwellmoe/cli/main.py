"""The entry point of the `dwellmoe` command: finds the command by name and runs it."""

import importlib
import sys

from dwellmoe.errors import needs, run_command, unknown_name
from dwellmoe.registry import take_plugins

COMMANDS = {
    "record": "record which experts a model chooses on your texts, as a trace for simulate",
    "lm-eval": "run tasks of EleutherAI's harness, with the routing of every task beside its score",
    "simulate": "replay recorded routing through expert caches: hit rates, memory plans, stall time",
    "serve": "serve a model to OpenAI's clients, its experts in memory or in a cache",
    "chat": "chat with a model in the terminal, with live figures of its cache",
    "pack": "write a checkpoint's experts as one contiguous record each, for faster reading",
    "export": "hand a trained adapter to other programs: routers alone, GGUF, other layouts, merged",
    "apply": "put a file of tuned routers on a copy of their base",
}
"""Command -> what it does; the module of that name beside this one has `run(words)`."""
EXTRAS = {
    "record": "offload",
    "lm-eval": "lm-eval",
    "simulate": "sim",
    "serve": "serve",
    "chat": "serve",
    "pack": "offload",
    "export": "export",
    "apply": "offload",
}
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
        module = words[0].replace("-", "_")
        importlib.import_module(f"dwellmoe.cli.{module}").run(words[1:])


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        ["usage: dwellmoe COMMAND [options]", "", *lines, "", "dwellmoe COMMAND --help says more"]
    )
