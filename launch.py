"""Knows what a launcher leaves to the program it starts; does not know what the program does."""

import os
import time
from pathlib import Path

DEFAULT_DEEPSPEED = Path(__file__).resolve().parent / "configs" / "zero2.json"
STALE_SECONDS = 900
"""Building DeepSpeed's extension takes a minute or two; a lock this old has lost its builder."""


def with_default_deepspeed(arguments: list[str]) -> list[str]:
    """The command line, with the ZeRO-2 file added when the deepspeed launcher started us and none was named.

    The deepspeed launcher, and no other, adds --local_rank.
    """
    if not any(argument.startswith("--local_rank") for argument in arguments):
        return arguments
    drop_stale_build_locks()
    named = any(argument.split("=")[0] == "--deepspeed" for argument in arguments)
    return arguments if named else [*arguments, "--deepspeed", str(DEFAULT_DEEPSPEED)]


def drop_stale_build_locks() -> None:
    """Removes locks that a killed build of a torch extension left: later runs would wait for them forever."""
    default = Path.home() / ".cache" / "torch_extensions"
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"):
        try:
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                lock.unlink()
        except FileNotFoundError:
            pass  # another rank was quicker
