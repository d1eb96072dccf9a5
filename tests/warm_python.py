"""A Python that has imported what takes seconds, and forks for each command of the project that a test runs.

A command runs in a process of its own, with its own arguments, folder, environment and output; nothing of
the project is imported before. Run as a script, this file is that Python: it reads a command a line and
answers with the process id.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from threading import Timer
from typing import IO, Any

SLOW_IMPORTS = (
    "torch",
    "torch.utils.data",
    "numba",
    "datasets",
    "peft",
    "accelerate",
    "transformers.trainer",
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.figure",
)


class Forked:
    """A command that was started: what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, status: Path, outputs: list[IO[str]]) -> None:
        self.pid, self._status = pid, status
        self.stdout, self.stderr = outputs or (None, None)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code; None as long as the command runs."""
        return int(self._status.read_text()) if self._status.exists() else None

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (found := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.005)
        return found

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What is still to be read, up to the end of the command, which is killed if that comes too late."""
        assert self.stdout and self.stderr
        late = Timer(timeout, self.kill)
        late.start()
        written = self.stdout.read()
        is_late = not late.is_alive()
        late.cancel()
        if is_late:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        self.wait(timeout)
        return written, self.stderr.read()

    def end(self) -> None:
        """Kills it if it still runs."""
        self.kill()
        self.wait(240)
        for output in (self.stdout, self.stderr):
            if output:
                output.close()


class WarmPython:
    """Starts that Python, and runs commands in forks of it until it is ended."""

    def __init__(self, folder: Path) -> None:
        """`folder` is for the outputs of commands."""
        self._folder, self._numbers = folder, count()
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(
        self, words: list[str], folder: Path, environment: dict[str, str], terminal: str = ""
    ) -> Forked:
        """A script with its arguments, or `-m` and a module's name with its; begun in `folder`.

        It writes to a terminal, given by its device, or else to what is returned.
        """
        own = self._folder / str(next(self._numbers))
        own.mkdir()
        outputs = [] if terminal else _outputs(own)
        files = [terminal] * 3 if terminal else [os.devnull, str(own / "stdout"), str(own / "stderr")]
        asked = {"words": words, "folder": str(folder), "environment": environment, "files": files}
        pid = self._ask(asked | {"status": str(own / "status")})
        return Forked(pid, own / "status", outputs)

    def run(
        self, words: list[str], folder: Path, environment: dict[str, str], timeout_seconds: float
    ) -> subprocess.CompletedProcess:
        command = self.start(words, folder, environment)
        try:
            written = command.communicate(timeout_seconds)
            return subprocess.CompletedProcess(words, command.wait(timeout_seconds), *written)
        finally:
            command.end()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, asked: dict[str, Any]) -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _outputs(folder: Path) -> list[IO[str]]:
    """The output of a command, to be read while it runs, and its errors, to be read after."""
    os.mkfifo(folder / "stdout")
    (folder / "stderr").touch()
    pipe = os.open(folder / "stdout", os.O_RDONLY | os.O_NONBLOCK)  # there is no writer yet to wait for
    os.set_blocking(pipe, True)
    return [os.fdopen(pipe, errors="replace"), open(folder / "stderr", errors="replace")]


def serve() -> dict[str, Any]:
    """Forks for each command; returns what was asked, in the process that is to run it."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            return watched(json.loads(line), answers)
    sys.exit()


def watched(asked: dict[str, Any], answers: IO[str]) -> dict[str, Any]:
    """Forks once more, for the command; this process waits for it and writes down its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _open_files(asked["files"])
    if (command := os.fork()) == 0:
        answers.close()
        return asked
    print(command, file=answers)
    _, status = os.waitpid(command, 0)
    unfinished = Path(asked["status"] + "-unfinished")
    unfinished.write_text(str(os.waitstatus_to_exitcode(status)))
    unfinished.rename(asked["status"])
    os._exit(0)


def _open_files(paths: list[str]) -> None:
    for number, path in enumerate(paths):
        file = os.open(path, os.O_NOCTTY | (os.O_WRONLY if path.endswith("stdout") else os.O_RDWR))
        os.dup2(file, number)
        os.close(file)


def become(asked: dict[str, Any]) -> None:
    """Takes on the folder, environment and terminal of a command, and runs it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background has it off
    if os.isatty(0):
        os.login_tty(0)
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", 1, closefd=False)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    first, *words = asked["words"]
    if first == "-m":
        sys.path[0] = asked["folder"]
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).parent)
        sys.argv = [first, *words]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    become(serve())
