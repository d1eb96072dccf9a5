"""Knows how much of a data set is measured, from the options and the task; does not read the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dwellmoe.data.sampling import seeded_sample
from dwellmoe.data.task import Task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.settings import EvaluationSettings

Item = TypeVar("Item")
SAMPLE, ANSWERED, NEW_TOKENS = 256, 24, 48
"""Where neither an option nor the task says otherwise."""
EVERY = 10**9


@dataclass(frozen=True)
class SampleSpec:
    """A seeded sample of `requests` (0: all), or the slice of so many from `start` on; answers to the first
    `answered` of them with at most `new_tokens` tokens; rows of at most `row_tokens`.
    """

    requests: int
    answered: int
    new_tokens: int
    row_tokens: int
    start: int | None = None

    def of(self, examples: Sequence[Item], seed: int) -> list[Item]:
        """The examples that are measured. Raises UserError for a slice beyond the last one."""
        if self.start is None:
            return seeded_sample(examples, self.requests or None, seed)
        stop = self.start + self.requests if self.requests else None
        if examples and self.start >= len(examples):
            last = len(examples) - 1
            raise UserError(f"--limit_start or --task_num {self.start}: the last request is number {last}")
        return list(examples[self.start : stop])


def sample_spec_of(settings: EvaluationSettings, task: Task, row_tokens: int) -> SampleSpec:
    """A slice where --limit or --limit_start is given, and of a benchmark, every request of it answered; else
    a sample. Raises UserError for options that contradict each other.
    """
    limit, start, sample = settings.limit, settings.limit_start, settings.limit_evaluation
    sliced = limit is not None or start is not None
    if sliced and sample is not None:
        raise UserError("--limit_evaluation draws a sample, --limit and --limit_start take a slice: give one")
    whole = sliced or task.benchmark
    answered = _first(settings.generate_limit, EVERY if whole else ANSWERED)
    new_tokens = _first(settings.max_new_tokens, task.answer_tokens or NEW_TOKENS)
    if sliced or (task.benchmark and sample is None):
        return SampleSpec(limit or 0, answered, new_tokens, row_tokens, start or 0)
    return SampleSpec(_first(sample, SAMPLE), answered, new_tokens, row_tokens)


def _first(given: int | None, default: int) -> int:
    return default if given is None else given
