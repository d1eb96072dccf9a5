"""The first thing that a process does: it checks its command line before it imports what takes seconds, and
makes up for what launchers such as torchrun leave undone.
"""

import ctypes
import errno
import importlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from dwellmoe.errors import UserError, port_in_use, run_command
from dwellmoe.interrupt import end_quietly_on_interrupt

STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two: the process that made an older lock is gone."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


def begin(parser: str, check: str) -> None:
    """Prints help and refuses what cannot be, before the imports of the caller, which take seconds.

    `parser` is `module:function` of what reads the command line, `check` of what looks for mistakes in the
    options and in the files that they name. Of several ranks the first of a machine does so for all: its
    launcher ends the others. An interrupt from here on ends the process quietly, for in the middle of an
    import it could be swallowed or become another error; `run_command` takes over.
    """
    end_with_launcher()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        run_command(lambda: _check(parser, check, sys.argv[1:]), nothing_to_clean=True)
    end_quietly_on_interrupt()


def _check(parser: str, check: str, words: list[str]) -> None:
    check_port()
    plugins: list[Path] = []
    left = _function("dwellmoe.registry:take_plugins")(words, load=lambda path: plugins.append(Path(path)))
    options = _function(parser)(left)
    if not plugins:  # which may import torch, and without which their names are unknown
        _function(check)(options)


def _function(name: str) -> Callable:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def end_with_launcher() -> None:
    """Has the kernel kill this rank when its launcher dies, which alone would end it if another rank died.

    The deepspeed command starts a launcher, which starts the ranks and outlives the command if that is
    killed: its ranks watch the command too. No effect in a process that no launcher started.
    """
    launcher = Path("/proc", str(os.getppid()))
    words = _words_of(launcher)
    is_rank = "LOCAL_RANK" in os.environ or _is_accelerate(words)
    if not is_rank or not hasattr(ctypes.CDLL(None), "prctl"):
        return
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    try:
        if b"deepspeed.launcher.launch" in words:
            command = int((launcher / "stat").read_text().rpartition(")")[2].split()[1])
            Thread(target=_end_after, args=(os.pidfd_open(command),), daemon=True).start()
    except OSError:
        return  # a system without these files


def _is_accelerate(words: list[bytes]) -> bool:
    """Whether a command is `accelerate launch`, which tells a single process nothing of ranks."""
    names = b" ".join(map(os.path.basename, words[:5]))
    return b"accelerate" in names and b"launch" in names


def _words_of(process: Path) -> list[bytes]:
    """The command line of a process, given as its folder in /proc; nothing where there is none."""
    try:
        return (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def check_port() -> None:
    """UserError where this first rank is to listen at a port (MASTER_PORT) that is in use: torch would find
    it when everything is loaded. Under torchrun the launcher listens itself.
    """
    port = os.environ.get("MASTER_PORT", "")
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if hosted or os.environ.get("RANK") != "0" or os.environ.get("WORLD_SIZE") == "1" or not port.isdecimal():
        return
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            if getattr(error, "errno", 0) == errno.EADDRINUSE:
                raise UserError(port_in_use(port)) from None


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
