"""Knows how a remark reaches the user once: on standard error, from the first rank, not again in this
process.
"""

import os
import sys

_warned: set[str] = set()


def warn_once(remark: str) -> None:
    """Prints a remark unless this process has, or another rank does."""
    if remark in _warned or os.environ.get("RANK", "0") != "0":
        return
    _warned.add(remark)
    print(remark, file=sys.stderr, flush=True)
