"""Knows how a remark reaches the user once: on standard error, from the first rank, not again in this
process.
"""

import os
import sys

_said: set[str] = set()


def say_once(remark: str) -> None:
    """Prints a remark unless this process has, or another rank does."""
    if remark in _said or os.environ.get("RANK", "0") != "0":
        return
    _said.add(remark)
    print(remark, file=sys.stderr, flush=True)
