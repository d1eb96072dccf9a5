"""Processes that take one step whenever they are told to: so that variants, each with its own memory, can
take turns.

A script calls `serve(make_step)`; `StepProcess` starts it, and is the other end.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc then returns freed tensors at once, so that the resident set is the memory in use."""


def serve(make_step: Callable[[], Callable[[], object]], loading_counts: bool = False) -> None:
    """Takes a step for every line of standard input, and answers with its seconds and the memory so far.

    Memory counts from what is resident once `make_step` has loaded the model. With `loading_counts` the
    kernel's largest resident set remains that of the whole process.
    """
    step = make_step()
    loaded_bytes = _status_bytes("VmRSS")
    if not loading_counts:
        Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is counted from here
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "extra_bytes": _status_bytes("VmHWM") - loaded_bytes}
        print(json.dumps(answer), flush=True)


def _status_bytes(field: str) -> int:
    """A size in /proc/self/status (Linux)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


class StepProcess:
    """A process of a script that calls `serve`; a `with` block ends it."""

    def __init__(self, script: str | Path, *arguments: str, exact_memory: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (GIVE_BACK if exact_memory else {}),
        )

    def step(self) -> dict[str, float]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def kernel_count(self, file: str, field: str) -> int:
        """A number in a file of the process's folder in /proc, in the unit that it has there."""
        text = Path(f"/proc/{self._process.pid}/{file}").read_text()
        found = re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)
        assert found
        return int(found[1])

    def __enter__(self) -> "StepProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def seconds_in_turns(
    processes: Mapping[str, StepProcess], rounds: int, warm_up: int, steps: int = 1
) -> dict[str, float]:
    """Median seconds of a step of each process; each round runs `steps` steps of every one of them, so that
    a slow spell of the machine hits all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in processes}
    for i in range(warm_up + rounds):
        for name, process in processes.items():
            found = [process.step()["seconds"] for _ in range(steps)]
            if i >= warm_up:
                taken[name] += found
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
