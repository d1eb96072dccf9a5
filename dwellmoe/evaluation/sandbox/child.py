"""The sandboxed process: confines itself and says so on its first line, then runs one program.

Started by `sandbox/run.py` in a bare interpreter; reads its task as JSON from standard input. The first line,
written before the program can write anything, is `confined <backend>` or `refused <reason>`. The last is
`<nonce> <verdict> <reason>`: a program without the nonce cannot write it by accident.
"""

import json
import os
import signal
import sys

sys.path.insert(0, sys.argv[1])

from dwellmoe.evaluation.sandbox import confine, kernel

CONFINED, REFUSED, PASSED, FAILED = "confined", "refused", "passed", "failed"
LONGEST_LINE = 400
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
        _write_line(f"{REFUSED} {error.strerror or error}")
        _leave(0)
    _write_line(f"{CONFINED} {backend}")
    verdict, reason = _run(task["program"])
    _write(1, b"\n")
    _write_line(f"{nonce} {verdict} {reason}")
    _leave(0)


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


def _run(program: str) -> tuple[str, str]:
    """Verdict and reason. Any exception is a failure; so is an early exit, which would skip the tests.

    `exec` in an empty namespace is what the harness of HumanEval does: `__name__` is then "builtins", so what
    stands below `if __name__ == "__main__":` is not run.
    """
    sys.argv = ["program"]
    try:
        exec(compile(program, "program", "exec"), {})
    except BaseException as error:
        return FAILED, f"{type(error).__name__}: {error}"
    return PASSED, ""


def _write_line(text: str) -> None:
    line = " ".join(text.split())[:LONGEST_LINE]
    _write(1, f"{line}\n".encode(errors="replace"))


if __name__ == "__main__":
    main()
