"""Runs a program of unknown intent in a sandbox and returns its verdict.

A fresh interpreter (child.py) confines itself before it runs a line of the program: files, network,
processes, signals, memory, CPU time. This side enforces the time limit, caps the output and kills. It
protects the host; a program that searches its interpreter's memory can still forge its own verdict.
"""

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from dwellmoe.errors import UserError
from dwellmoe.evaluation.sandbox.confine import BACKENDS

CHILD = Path(__file__).resolve().with_name("child.py")
PACKAGE_PARENT = CHILD.parents[3]
"""The folder that the child imports `dwellmoe` from."""
TICK_SECONDS = 0.05
READ_BYTES = 1 << 16
SMALLEST_BYTES = 4096
"""Counted for each file at least, as an empty one takes up space too."""
LONGEST_REASON = 300


class Verdict(Enum):
    """What became of a program."""

    PASSED = "passed"
    FAILED = "failed"
    """It raised something, or left before its end."""
    TIMED_OUT = "timed out"
    TOO_MUCH_OUTPUT = "too much output"
    DIED = "died"
    """It ended without a verdict: killed by a limit, or left by os._exit."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 29
    file_bytes: int = 1 << 24
    """Of all files together; one file may have an eighth of it."""
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """A verdict, its reason, and the backend that confined the program (empty unless it passed)."""

    verdict: Verdict
    reason: str = ""
    backend: str = ""


class SandboxUnavailable(UserError):
    """This machine cannot isolate a program."""


def run_program(program: str, limits: Limits = Limits(), backends: tuple[str, ...] = BACKENDS) -> Outcome:
    """Runs a Python program (standard library only) to its end, or until a limit stops it.

    PASSED means that its last line has run. `backends` are tried in order. Raises SandboxUnavailable where
    the kernel grants none of them, or no filter of system calls: no line of the program has then been run.
    """
    folder = tempfile.mkdtemp(prefix="dwellmoe-sandbox-")
    task = {
        "nonce": secrets.token_hex(16),
        "program": program,
        "folder": folder,
        "backends": backends,
        "parent": os.getpid(),
        **{name: getattr(limits, name) for name in ("cpu_seconds", "memory_bytes", "file_bytes")},
    }
    try:
        with _started(folder) as process:
            try:
                return _watched(process, task, limits, Path(folder))
            finally:
                _kill(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_sandbox(backends: tuple[str, ...] = BACKENDS) -> str:
    """The first of the backends that works on this machine. Raises SandboxUnavailable."""
    outcome = run_program("pass", backends=backends)
    if outcome.verdict is not Verdict.PASSED:
        raise SandboxUnavailable(f"an empty program {outcome.verdict.value} in the sandbox: {outcome.reason}")
    return outcome.backend


def _started(folder: str) -> subprocess.Popen:
    """A bare interpreter in a session of its own: no environment, no site-packages, no open file of ours."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(CHILD), str(PACKAGE_PARENT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"LC_ALL": "C.UTF-8"},
        cwd=folder,
        start_new_session=True,
    )


def _watched(process: subprocess.Popen, task: dict, limits: Limits, folder: Path) -> Outcome:
    assert process.stdin and process.stdout
    deadline = time.monotonic() + limits.wall_seconds
    with contextlib.suppress(BrokenPipeError), process.stdin as task_file:
        task_file.write(json.dumps(task).encode())
    output = bytearray()
    closed = False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if closed and _is_over(process):
                return _ended(process.returncode, bytes(output), task["nonce"])
            if not closed and selector.select(TICK_SECONDS):
                block = os.read(process.stdout.fileno(), READ_BYTES)
                output += block
                closed = not block
            if len(output) > limits.output_bytes:
                return Outcome(Verdict.TOO_MUCH_OUTPUT, f"more than {limits.output_bytes} bytes")
            if _holds_more(folder, limits.file_bytes):
                return Outcome(Verdict.DIED, f"more than {limits.file_bytes} bytes of files")
    return Outcome(Verdict.TIMED_OUT, f"after {limits.wall_seconds:g} s")


def _is_over(process: subprocess.Popen) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TICK_SECONDS)
    return process.returncode is not None


def _ended(status: int, output: bytes, nonce: str) -> Outcome:
    """The outcome by the child's first line, which no program can write, and by its last verdict.

    What a program writes may hold anything, the nonce too: whatever is not exactly a pass has failed.
    """
    first, _, written = output.decode(errors="replace").partition("\n")
    state, _, backend = first.partition(" ")
    if state == "refused":
        raise SandboxUnavailable(
            f"generated programs cannot be isolated on this machine, so none is run ({_readable(backend)}); "
            "needed: seccomp, and user namespaces (Linux 5.12) or Landlock (Linux 6.2); "
            "--allow_unsafe_code True runs them without isolation"
        )
    _, reported, last = written.rpartition(f"\n{nonce} ")
    if state != "confined" or not reported:
        return Outcome(Verdict.DIED, f"{_how_it_ended(status)} before its end")
    verdict, _, reason = last.partition("\n")[0].partition(" ")
    if verdict == Verdict.PASSED.value:
        return Outcome(Verdict.PASSED, backend=backend)
    return Outcome(Verdict.FAILED, _readable(reason))


def _how_it_ended(status: int) -> str:
    """The signal that ended a process, by name where it has one, or its exit code."""
    if status >= 0:
        return f"exit code {status}"
    return next((known.name for known in signal.Signals if known == -status), f"signal {-status}")


def _holds_more(folder: Path, most_bytes: int) -> bool:
    """Whether the files in a folder take up more bytes than that; they may change meanwhile."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += max(SMALLEST_BYTES, entry.stat(follow_symlinks=False).st_size)
            if total > most_bytes:
                return True
    return False


def _readable(reason: str) -> str:
    """The beginning of a text, without characters that could control a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in reason[:LONGEST_REASON])


def _kill(process: subprocess.Popen) -> None:
    """Kills the process and its group; it can have no other children (see system_calls.py)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
