"""Knows what a launcher leaves to the program it starts; does not know what the program does."""

import ctypes
import os
import signal
import time
from pathlib import Path

DEFAULT_DEEPSPEED = Path(__file__).resolve().parent / "configs" / "zero2.json"
STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two; a lock this old has lost its builder."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


def with_default_deepspeed(arguments: list[str]) -> list[str]:
    """The command line, with the ZeRO-2 file added when the deepspeed launcher started us and none was named.

    The deepspeed launcher, and no other, adds --local_rank.
    """
    if not any(argument.startswith("--local_rank") for argument in arguments):
        return arguments
    drop_stale_build_locks()
    named = any(argument.split("=")[0] == "--deepspeed" for argument in arguments)
    return arguments if named else [*arguments, "--deepspeed", str(DEFAULT_DEEPSPEED)]


def end_with_launcher() -> None:
    """Has the kernel kill this rank when its launcher dies: nobody would be left to end it if another rank
    died, and its peers would wait. A process that no launcher started is left alone.
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
            pass  # another rank was quicker
