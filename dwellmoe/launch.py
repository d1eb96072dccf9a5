"""Knows what a launcher leaves to the program it starts; does not know what the program does."""

import ctypes
import os
import signal
import time
from pathlib import Path

STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two; a lock this old has lost its builder."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


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
