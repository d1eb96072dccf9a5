"""The sandboxed process: confines itself, runs one program, and says at its end what became of it.

Started by evaluation/code_sandbox.py in a bare interpreter; reads its orders as JSON from standard input.
The last line it writes is `<mark> <verdict>`; whoever does not know the mark cannot write it by accident.
"""

import json
import os
import signal
import sys

sys.path.insert(0, sys.argv[1])

from dwellmoe.evaluation.sandbox import confine, kernel

REFUSED, PASSED, FAILED = "refused", "passed", "failed"
LONGEST_REASON = 300
# Bound before the program can put something else under these names.
_write, _leave = os.write, os._exit


def main() -> None:
    """Confinement first; the program sees an empty input, no environment and only its own folder."""
    orders = json.load(sys.stdin)
    mark = orders["mark"]
    try:
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != orders["parent"]:
            os._exit(1)
        del sys.path[0]
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        way = _confine(orders)
    except OSError as error:
        _end(mark, REFUSED, error.strerror or str(error))
    _end(mark, *_run(orders["program"], way))


def _confine(orders: dict) -> str:
    way = confine.fence_files(orders["backends"], orders["folder"], orders["file_bytes"])
    confine.limit_resources(orders["memory_bytes"], orders["cpu_seconds"], orders["file_bytes"])
    try:
        confine.fence_calls()
    except OSError:
        if confine.UNCONFINED not in orders["backends"]:
            raise
        way += ", system calls unfenced"
    return way


def _run(program: str, way: str) -> tuple[str, str]:
    """Anything a program raises fails it, leaving early too: what follows its exit would not be tested."""
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        return FAILED, f"{type(error).__name__}: {error}"
    return PASSED, way


def _end(mark: str, verdict: str, reason: str) -> None:
    line = " ".join(reason.split())[:LONGEST_REASON]
    _write(1, f"\n{mark} {verdict} {line}\n".encode(errors="replace"))
    _leave(0)


if __name__ == "__main__":
    main()
