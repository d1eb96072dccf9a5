"""What launchers such as torchrun leave undone: ending with them, and locks of builds that were killed."""

import ctypes
import os
import signal
import time
from pathlib import Path

STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two: the process that made an older lock is gone."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl(2)


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
