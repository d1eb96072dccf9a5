"""The first thing that a process does: it checks its command line before it imports what takes seconds, and
makes up for what launchers such as torchrun leave undone.
"""

import ctypes
import importlib
import os
import signal
import sys
import time
from pathlib import Path

from dwellmoe.errors import end_interrupted, run_command

STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two: the process that made an older lock is gone."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


def begin(parser: str) -> None:
    """Prints help and refuses what cannot be of the command line, before the imports of the caller.

    `parser` is `module:function` of what reads the command line. An interrupt from here on ends the process
    quietly, for in the middle of an import it could be swallowed or become another error; `run_command`
    takes over.
    """
    end_with_launcher()
    quick = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if quick:  # not where the shell has this process ignore interrupts
        signal.signal(signal.SIGINT, end_interrupted)
    module, _, name = parser.partition(":")
    parse = getattr(importlib.import_module(module), name)
    run_command(lambda: parse(_without_plugins(sys.argv[1:])))
    if quick:
        signal.signal(signal.SIGINT, end_interrupted)


def _without_plugins(words: list[str]) -> list[str]:
    """What plug-ins register is not needed yet, and they may import torch."""
    return importlib.import_module("dwellmoe.registry").take_plugins(words, load=Path)


def end_with_launcher() -> None:
    """Has the kernel kill this rank when its launcher dies, which alone would end it if another rank died.

    No effect in a process that no launcher started.
    """
    if "LOCAL_RANK" in os.environ and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def drop_stale_build_locks() -> None:
    """Removes locks that a killed build of a torch extension left: later runs would wait for them forever."""
    default = Path.home() / ".cache" / "torch_extensions"
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"):
        try:
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                lock.unlink()
        except FileNotFoundError:
            pass  # another rank has removed it
