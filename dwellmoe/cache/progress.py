"""Knows how to show that long work goes on; shows nothing for short work, or when nobody watches."""

import sys
import time
from collections.abc import Callable

PATIENCE_SECONDS = 1.0
WIDTH = 30


def progress_bar(label: str) -> Callable[[int, int], None] | None:
    """A function to be told (done, of), or None where standard error is not a terminal."""
    if not sys.stderr.isatty():
        return None
    begun = time.monotonic()

    def show(done: int, of: int) -> None:
        seconds = time.monotonic() - begun
        if seconds < PATIENCE_SECONDS:
            return
        filled = WIDTH * done // of
        left = seconds / done * (of - done)
        end = "\n" if done == of else ""
        print(f"\r{label} [{'#' * filled:<{WIDTH}}] {left:5.0f} s left", end=end, file=sys.stderr, flush=True)

    return show
