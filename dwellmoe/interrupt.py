"""Ctrl-C in the first seconds of a command: it ends at once in one line, also in the middle of an import.

The first import of every command. It imports modules that are part of the interpreter, so that nearly no time
passes before: `signal` itself would take as long as all of Python's start.
"""

import os
from _signal import SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]

INTERRUPTED = 128 + SIGINT
"""The exit code that shells have for a process which an interrupt ended."""


def end_quietly_on_interrupt() -> None:
    """Ends this process in one line if it is interrupted, until `run_command` takes over. No effect where
    the shell has it ignore interrupts.
    """
    if getsignal(SIGINT) is default_int_handler:
        signal(SIGINT, end_interrupted)


def end_interrupted(*_: object) -> None:
    """A handler of SIGINT that ends the process at once, in one line."""
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
