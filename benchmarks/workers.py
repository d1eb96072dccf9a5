"""Processes that run a checkpoint for a benchmark, the tokens they run on, and means of their answers."""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from memory_limit import MemoryLimit

WORKER = Path(__file__).resolve().with_name("offload_worker.py")
READERS = 4
SHORT_PROMPT, ALL_HIT_PROMPT = 32, 16
Answer = dict[str, Any]


class Process:
    """A process that answers JSON requests, one a line; a `with` block ends it."""

    def __init__(
        self, command: list[str], limit: MemoryLimit | None = None, threads: int | None = None
    ) -> None:
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.process = subprocess.Popen(
            limit.around(command) if limit else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._answer()

    def call(self, do: str, **values: object) -> Answer:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"do": do, **values}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Answer:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended with exit code {self.process.wait()}")
        return json.loads(line)

    def memory(self) -> dict[str, int]:
        """As the kernel counts it: the largest resident set so far, and the parts of the present one."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        names = {"peak_bytes": "VmHWM", "anonymous_bytes": "RssAnon", "file_bytes": "RssFile"}
        return {name: int(fields[field].split()[0]) * 1024 for name, field in names.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


class Worker(Process):
    """A process of offload_worker.py that runs the checkpoint in one mode."""

    def __init__(
        self,
        mode: str,
        args: argparse.Namespace,
        limit: MemoryLimit | None = None,
        threads: int | None = None,
        **options: object,
    ) -> None:
        command = [sys.executable, str(WORKER), mode]
        command += ["--model_name", args.model_name, "--offload_folder", str(args.offload_folder)]
        for name, value in options.items():
            command += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
        super().__init__(command, limit, threads)


class Tokens:
    """Prompts and continuations, drawn by seed."""

    def __init__(self, vocabulary: int, decode_tokens: int) -> None:
        self.vocabulary, self.decode_tokens, self._draw = vocabulary, decode_tokens, random.Random(0)

    def fresh(self, prompt_tokens: int) -> Answer:
        """Every token drawn at random."""
        drawn = [self._draw.randrange(self.vocabulary) for _ in range(prompt_tokens + self.decode_tokens)]
        return {"prompt": drawn[:prompt_tokens], "tokens": drawn[prompt_tokens:]}

    def constant(self) -> Answer:
        """One token over and over: all positions are alike, so all steps need the same experts."""
        return {"prompt": [7] * ALL_HIT_PROMPT, "tokens": [7] * self.decode_tokens}


def engine_settings(budget: str) -> Answer:
    return {"expert_budget": budget, "readers": READERS, "io": "direct"}


def median_decode(answers: Sequence[Answer]) -> float:
    return statistics.median(second for answer in answers for second in answer["decode_seconds"])


def mean_decode(answers: Sequence[Answer]) -> float:
    return statistics.mean(second for answer in answers for second in answer["decode_seconds"])


def median_prefill(answers: Sequence[Answer]) -> float:
    return statistics.median(answer["prefill_seconds"] for answer in answers)


def mean_disk_bytes(answers: Sequence[Answer]) -> float:
    return statistics.mean(answer["disk_bytes"] for answer in answers)
