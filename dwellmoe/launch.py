"""The first thing that a process does: it checks its command line before it imports what takes seconds, and
makes up for what launchers such as torchrun leave undone.
"""

import ctypes
import importlib
import os
import select
import signal
import sys
import time
from pathlib import Path
from threading import Thread

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

    The deepspeed command starts a launcher, which starts the ranks and outlives the command if that is
    killed: its ranks watch the command too. No effect in a process that no launcher started.
    """
    if "LOCAL_RANK" not in os.environ or not hasattr(ctypes.CDLL(None), "prctl"):
        return
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    launcher = Path("/proc", str(os.getppid()))
    try:
        if b"deepspeed.launcher.launch" in (launcher / "cmdline").read_bytes():
            command = int((launcher / "stat").read_text().rpartition(")")[2].split()[1])
            Thread(target=_end_after, args=(os.pidfd_open(command),), daemon=True).start()
    except OSError:
        return  # a system without these files


def _end_after(process: int) -> None:
    """Waits for the end of another process, given as its descriptor, and kills this one."""
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def drop_stale_build_locks() -> None:
    """Removes locks that a killed build of a torch extension left: later runs would wait for them forever."""
    default = Path.home() / ".cache" / "torch_extensions"
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"):
        try:
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                lock.unlink()
        except FileNotFoundError:
            pass  # another rank has removed it
