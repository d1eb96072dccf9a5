"""A Python that has imported what takes seconds, and forks for each command of the project that a test runs.

A command runs in a process of its own, with its own arguments, folder, environment and output; nothing of
the project is imported before. Run as a script, this file is that Python: it reads a command a line and
answers with the process id, then with the exit code.
"""

import importlib
import json
import os
import runpy
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

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


class WarmPython:
    """Starts that Python, and runs commands in forks of it until it is ended."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(
        self, words: list[str], folder: Path, environment: dict[str, str], timeout_seconds: float
    ) -> subprocess.CompletedProcess:
        """A script with its arguments, or `-m` and a module's name with its; run in `folder`."""
        outputs = [folder / f".warm-{name}" for name in ("stdout", "stderr")]
        asked = {"words": words, "folder": str(folder), "environment": environment}
        self._tell(asked | {"outputs": [str(path) for path in outputs]})
        process_id = self._answer(timeout_seconds)
        try:
            returncode = self._answer(timeout_seconds)
        except TimeoutError:
            os.kill(process_id, 9)
            raise subprocess.TimeoutExpired(words, timeout_seconds) from None
        finally:
            texts = [path.read_text(errors="replace") for path in outputs]
            for path in outputs:
                path.unlink()
        return subprocess.CompletedProcess(words, returncode, *texts)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, asked: dict[str, Any]) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _answer(self, timeout_seconds: float) -> int:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_seconds)
        if not ready:
            raise TimeoutError
        return int(self._process.stdout.readline())


def serve() -> dict[str, Any]:
    """Forks for each command; returns what was asked, in the process that is to run it."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if (child := os.fork()) == 0:
            answers.close()
            return asked
        print(child, file=answers)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)
    sys.exit()


def become(asked: dict[str, Any]) -> None:
    """Takes on the folder, environment and files of a command, and runs it."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in asked["outputs"]]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
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
