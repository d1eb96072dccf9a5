"""Knows how a program of unknown intent is run without harm; does not know what is in it.

A fresh interpreter confines itself (evaluation/sandbox/) before it runs a line of the program: files,
network, processes, signals, memory, CPU time. This side keeps the clock, caps the output and kills. It
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
"""What a file takes up at least."""


class Verdict(Enum):
    """What became of a program."""

    PASSED = "passed"
    FAILED = "failed"
    """It raised something, or left before its end."""
    TIMED_OUT = "timed out"
    TOO_MUCH_OUTPUT = "too much output"
    DIED = "died"
    """It ended without a word: killed by a limit, or left by os._exit."""


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 29
    file_bytes: int = 1 << 24
    """Of all files together; an eighth of it of one."""
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """A verdict, why, and the way the program's files were fenced (empty unless it passed)."""

    verdict: Verdict
    reason: str = ""
    way: str = ""


class SandboxUnavailable(UserError):
    """This machine cannot isolate a program as it must be."""


def run_program(program: str, limits: Limits = Limits(), backends: tuple[str, ...] = BACKENDS) -> Outcome:
    """Runs a Python program (standard library only) to its end, or until a limit stops it.

    Passed means that it ran through its last line. `backends` are tried in order. Raises SandboxUnavailable where
    the kernel grants none of them, or no filter of system calls: nothing of the program has then been run.
    """
    folder = tempfile.mkdtemp(prefix="dwellmoe-sandbox-")
    mark = secrets.token_hex(16)
    orders = {
        "mark": mark,
        "program": program,
        "folder": folder,
        "backends": backends,
        "parent": os.getpid(),
        **{name: getattr(limits, name) for name in ("cpu_seconds", "memory_bytes", "file_bytes")},
    }
    try:
        with _started(folder) as process:
            try:
                return _watched(process, orders, limits, Path(folder))
            finally:
                _kill(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_sandbox(backends: tuple[str, ...] = BACKENDS) -> str:
    """The first of the backends that holds here. Raises SandboxUnavailable."""
    outcome = run_program("pass", backends=backends)
    if outcome.verdict is not Verdict.PASSED:
        raise SandboxUnavailable(f"an empty program {outcome.verdict.value} in the sandbox: {outcome.reason}")
    return outcome.way


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


def _watched(process: subprocess.Popen, orders: dict, limits: Limits, folder: Path) -> Outcome:
    assert process.stdin and process.stdout
    deadline = time.monotonic() + limits.wall_seconds
    with contextlib.suppress(BrokenPipeError), process.stdin as orders_file:
        orders_file.write(json.dumps(orders).encode())
    said, silent = bytearray(), False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if silent and _is_over(process):
                return _ended(process.returncode, bytes(said), orders["mark"])
            if not silent and selector.select(TICK_SECONDS):
                block = os.read(process.stdout.fileno(), READ_BYTES)
                said += block
                silent = not block
            if len(said) > limits.output_bytes:
                return Outcome(Verdict.TOO_MUCH_OUTPUT, f"more than {limits.output_bytes} bytes")
            if _holds_more(folder, limits.file_bytes):
                return Outcome(Verdict.DIED, f"more than {limits.file_bytes} bytes of files")
    return Outcome(Verdict.TIMED_OUT, f"after {limits.wall_seconds:g} s")


def _is_over(process: subprocess.Popen) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TICK_SECONDS)
    return process.returncode is not None


def _ended(status: int, said: bytes, mark: str) -> Outcome:
    _, found, told = said.decode(errors="replace").rpartition(f"{mark} ")
    if not found:
        name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return Outcome(Verdict.DIED, f"{name} before its end")
    verdict, _, reason = _readable(told.strip()).partition(" ")
    if verdict == "refused":
        raise SandboxUnavailable(
            f"programs cannot be isolated here, so none is run ({reason}); needed: seccomp, and user "
            "namespaces (Linux 5.12) or Landlock (Linux 6.2); --allow_unsafe_code True runs them all the same"
        )
    return Outcome(Verdict(verdict), *((reason, "") if verdict == "failed" else ("", reason)))


def _holds_more(folder: Path, most_bytes: int) -> bool:
    """Whether the files in a folder, which may change meanwhile, take up more than that."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                total += max(SMALLEST_BYTES, entry.stat(follow_symlinks=False).st_size)
            if total > most_bytes:
                return True
    return False


def _readable(reason: str) -> str:
    """Without what could steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in reason)


def _kill(process: subprocess.Popen) -> None:
    """The process and its group; it can have no other children (see system_calls.py)."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
