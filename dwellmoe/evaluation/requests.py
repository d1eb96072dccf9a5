"""Which requests of a data set are measured, their tokens, and their batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from dwellmoe.data.chat_template import beginning
from dwellmoe.data.examples import Example, load_examples, seeded_sample
from dwellmoe.data.task import Task
from dwellmoe.data.tokenised import encode_examples, last_answer_row, token_ids
from dwellmoe.data.wording import worded_examples
from dwellmoe.errors import UserError
from dwellmoe.evaluation.settings import EvaluationSettings

Item = TypeVar("Item")
SAMPLE, GENERATED, NEW_TOKENS = 256, 24, 48
"""Requests, requests with a generated answer, and tokens of it, unless an option or the task gives others."""
ALL = 10**9


@dataclass(frozen=True)
class SampleSpec:
    """Which requests are measured, on how many tokens."""

    requests: int
    """Size of the seeded sample, or of the slice that begins at `start`; 0: all."""
    generated: int
    """Answers are generated to the first so many of them."""
    new_tokens: int
    """The most tokens of a generated answer."""
    row_tokens: int
    """The most tokens of a prompt with its reference answer."""
    start: int | None = None

    def choose(self, examples: Sequence[Item], seed: int) -> list[Item]:
        """The examples that are measured. Raises UserError for a slice beyond the last one."""
        if self.start is None:
            return seeded_sample(examples, self.requests or None, seed)
        stop = self.start + self.requests if self.requests else None
        if examples and self.start >= len(examples):
            last = len(examples) - 1
            raise UserError(f"--limit_start or --task_num {self.start}: the last request is number {last}")
        return list(examples[self.start : stop])


def sample_spec_of(settings: EvaluationSettings, task: Task, row_tokens: int) -> SampleSpec:
    """A slice of the data with --limit or --limit_start, and for a benchmark; else a seeded sample.

    Raises UserError for options that contradict each other.
    """
    limit, start, sample = settings.limit, settings.limit_start, settings.limit_evaluation
    sliced = limit is not None or start is not None
    if sliced and sample is not None:
        raise UserError("--limit_evaluation draws a sample, --limit and --limit_start take a slice: give one")
    in_order = sliced or (task.benchmark and sample is None)
    generate_all = sliced or task.benchmark
    return SampleSpec(
        requests=limit or 0 if in_order else _or_default(sample, SAMPLE),
        generated=_or_default(settings.generate_limit, ALL if generate_all else GENERATED),
        new_tokens=_or_default(settings.max_new_tokens, task.answer_tokens or NEW_TOKENS),
        row_tokens=row_tokens,
        start=start or 0 if in_order else None,
    )


def _or_default(given: int | None, default: int) -> int:
    return default if given is None else given


@dataclass(frozen=True)
class Request:
    """One row of tokens: a prompt and its reference answer, or a window of running text (no prompt)."""

    request_id: int
    row: dict[str, Any]
    """`input_ids`, `labels`, `prompt_tokens` as the training data have them."""
    example: Example
    has_prompt: bool
    prompt_ids: list[int]
    """What generation starts from: the prompt, of which `row` may hold less if the reference answer is long;
    for running text the first half of its window.
    """
    cut_prompt_tokens: int = 0
    """Tokens that `prompt_ids` lost at its beginning."""


def load_requests(
    task: Task, split: str, tokenizer: Any, sample_spec: SampleSpec, seed: int
) -> list[Request]:
    """The measured examples of a split as numbered requests; `task` as `as_asked` gives it. UserError."""
    examples = sample_spec.choose(load_examples(task, split, seed=seed), seed)
    if not examples:
        raise UserError(f"{task.name}: the split '{split}' is empty")
    examples = worded_examples(task, examples, tokenizer)
    if task.of_conversations:
        return [
            _last_answer(request_id, example, tokenizer, sample_spec.row_tokens)
            for request_id, example in enumerate(examples)
        ]
    prompted = [example for example in examples if example.prompt]
    rows = encode_examples(prompted, tokenizer, sample_spec.row_tokens) if prompted else []
    texts = [example.prompt for example in prompted]
    prompts = [prompt_ids(tokenizer, text, sample_spec.row_tokens) for text in texts]
    found = list(zip(prompted, map(dict, rows), prompts, strict=True))
    for example in examples:
        if not example.prompt:
            windows = map(dict, encode_examples([example], tokenizer, sample_spec.row_tokens))
            found += [(example, row, CutPrompt(_first_half(row["input_ids"]), 0)) for row in windows]
    return [
        Request(
            request_id=request_id,
            row=row,
            example=example,
            has_prompt=bool(example.prompt),
            prompt_ids=prompt.ids,
            cut_prompt_tokens=prompt.cut_tokens,
        )
        for request_id, (example, row, prompt) in enumerate(found)
    ]


def _last_answer(request_id: int, example: Example, tokenizer: Any, row_tokens: int) -> Request:
    """A conversation is measured by its last answer."""
    assert example.rendered is not None
    row, prompt = last_answer_row(example.rendered, tokenizer, row_tokens)
    begin = len(beginning(tokenizer))
    cut = max(0, len(prompt) - row_tokens)
    return Request(
        request_id=request_id,
        row=row,
        example=example,
        has_prompt=True,
        prompt_ids=prompt[:begin] + prompt[begin + cut :],
        cut_prompt_tokens=cut,
    )


class CutPrompt(NamedTuple):
    """A prompt's tokens, and how many it lost at its beginning."""

    ids: list[int]
    cut_tokens: int


def prompt_ids(tokenizer: Any, prompt: str, max_tokens: int | None) -> CutPrompt:
    """A prompt's tokens, after what the tokenizer puts before every text; a long prompt loses its start."""
    begin, (ids,) = beginning(tokenizer), token_ids(tokenizer, [prompt])
    first = 0 if max_tokens is None else max(0, len(ids) - max_tokens + len(begin))
    return CutPrompt(begin + ids[first:], first)


def _first_half(ids: list[int]) -> list[int]:
    return ids[: max(1, len(ids) // 2)]


def in_batches(items: Sequence[Item], lengths: Sequence[int], batch_size: int) -> list[list[Item]]:
    """Batches of items of like length, longest first: little padding, and memory runs out at once or never.

    Which items run together depends on nothing else, so numbers do not change with the number of ranks.
    """
    order = sorted(range(len(items)), key=lambda i: -lengths[i])
    return [
        [items[i] for i in order[begin : begin + batch_size]] for begin in range(0, len(order), batch_size)
    ]
