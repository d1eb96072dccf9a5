"""The sandboxed process: confines itself, runs one program, and reports the verdict on its last line.

Started by `sandbox/run.py` in a bare interpreter; reads its task as JSON from standard input. The last line
it writes is `<nonce> <verdict> <reason>`: a program that does not know the nonce cannot write it by accident.
"""

import json
import os
import signal
import sys

sys.path.insert(0, sys.argv[1])

from dwellmoe.evaluation.sandbox import confine, kernel

REFUSED, PASSED, FAILED = "refused", "passed", "failed"
LONGEST_REASON = 300
# Bound before the program can rebind these names.
_write, _leave = os.write, os._exit


def main() -> None:
    """Confinement first; the program sees an empty input, no environment and only its own folder."""
    task = json.load(sys.stdin)
    nonce = task["nonce"]
    try:
        kernel.die_with_parent(signal.SIGKILL)
        if os.getppid() != task["parent"]:
            os._exit(1)
        del sys.path[0]
        os.close(0)
        os.open(os.devnull, os.O_RDONLY)
        backend = _confine(task)
    except OSError as error:
        _end(nonce, REFUSED, error.strerror or str(error))
    _end(nonce, *_run(task["program"], backend))


def _confine(task: dict) -> str:
    """The backend that confines the files."""
    backend = confine.confine_files(task["backends"], task["folder"], task["file_bytes"])
    confine.limit_resources(task["memory_bytes"], task["cpu_seconds"], task["file_bytes"])
    try:
        confine.confine_calls()
    except OSError:
        if confine.UNCONFINED not in task["backends"]:
            raise
        backend += ", all system calls allowed"
    return backend


def _run(program: str, backend: str) -> tuple[str, str]:
    """Verdict and reason. Any exception is a failure; so is an early exit, which would skip the tests."""
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        return FAILED, f"{type(error).__name__}: {error}"
    return PASSED, backend


def _end(nonce: str, verdict: str, reason: str) -> None:
    line = " ".join(reason.split())[:LONGEST_REASON]
    _write(1, f"\n{nonce} {verdict} {line}\n".encode(errors="replace"))
    _leave(0)


if __name__ == "__main__":
    main()
