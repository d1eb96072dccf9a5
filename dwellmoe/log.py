"""`warn_once`: a remark to the user on standard error, once in a process and from the first rank alone."""

import os
import sys

_warned: set[str] = set()


def warn_once(remark: str) -> None:
    """Prints a remark, unless this process has printed it or is not the first rank."""
    if remark in _warned or os.environ.get("RANK", "0") != "0":
        return
    _warned.add(remark)
    print(remark, file=sys.stderr, flush=True)
