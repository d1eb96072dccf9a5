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
from contextlib import suppress
from pathlib import Path
from threading import Thread

from dwellmoe.errors import UserError, port_in_use, run_command
from dwellmoe.interrupt import end_quietly_on_interrupt
from dwellmoe.log import warn_once

STALE_SECONDS = 300
"""Building DeepSpeed's extension takes a minute or two, and changes files all the time."""
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
        run_command(lambda: check_command_line(parser, check, sys.argv[1:]), nothing_to_clean=True)
    end_quietly_on_interrupt()


def check_command_line(parser: str, check: str, words: list[str]) -> None:
    """Reads a command line and looks for mistakes, as `begin` says. Raises UserError."""
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
    """Removes locks that a killed build of a torch extension left: this run would wait for them forever.

    A build of another machine that shares the folder shows only in files that change: it is waited for, which
    is said, until nothing has changed for a while.
    """
    default = Path.home() / ".cache" / "torch_extensions"
    locks = list(Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"))
    if left := [lock for lock in locks if not _dropped(lock)]:
        warn_once(f"waiting for another process that builds an extension of torch ({left[0]})")
        Thread(target=_drop_later, args=(left,), daemon=True).start()


def _drop_later(locks: list[Path]) -> None:
    while locks := [lock for lock in locks if not _dropped(lock)]:
        time.sleep(5)


def _dropped(lock: Path) -> bool:
    """Whether a lock is gone, after it was removed if no process of this machine holds it and it is stale."""
    try:
        changed = max(path.stat().st_mtime for path in lock.parent.iterdir())
        if time.time() - changed > STALE_SECONDS and not _is_open(lock):
            lock.unlink()
        return not lock.exists()
    except OSError:
        return True  # another rank has removed it, or it cannot be removed


def _is_open(path: Path) -> bool:
    """Whether a process of this machine has a file open, as far as this one may see; torch does so with the
    lock of a build.
    """
    for process in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(link.samefile(path) for link in process.iterdir() if link.exists()):
                return True
    return False
