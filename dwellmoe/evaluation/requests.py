"""Knows which requests are measured and how they are shared out in batches; does not run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dwellmoe.data.examples import Example, load_examples
from dwellmoe.data.task import Task
from dwellmoe.data.tokenised import beginning, encode_examples, token_ids
from dwellmoe.errors import UserError
from dwellmoe.evaluation.chat_template import as_messages
from dwellmoe.evaluation.sample_spec import SampleSpec

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """One row of tokens: a prompt and its reference answer, or a window of running text (no prompt)."""

    number: int
    row: dict[str, Any]
    """`input_ids`, `labels`, `prompt_tokens` as the training data have them."""
    example: Example
    has_prompt: bool
    prompt_ids: list[int]
    """What generation starts from: the prompt, whatever of it the reference answer leaves room for in `row`;
    of running text the first half of its window.
    """


def load_requests(
    task: Task, split: str, tokenizer: Any, sample_spec: SampleSpec, seed: int, in_chat: bool = False
) -> list[Request]:
    """The examples of a split that are measured as numbered requests. Raises UserError."""
    examples = sample_spec.of(load_examples(task, split, seed=seed), seed)
    if not examples:
        raise UserError(f"{task.name}: the split '{split}' is empty")
    examples = as_messages(examples, tokenizer) if in_chat else examples
    asked = [example for example in examples if example.prompt]
    rows = encode_examples(asked, tokenizer, sample_spec.row_tokens) if asked else []
    texts = [example.prompt for example in asked]
    prompts = [prompt_ids(tokenizer, ids, sample_spec.row_tokens) for ids in token_ids(tokenizer, texts)]
    found = list(zip(asked, map(dict, rows), prompts, strict=True))
    for example in examples:
        if not example.prompt:
            windows = map(dict, encode_examples([example], tokenizer, sample_spec.row_tokens))
            found += [(example, row, _first_half(row["input_ids"])) for row in windows]
    return [
        Request(place, row, example, bool(example.prompt), prompt)
        for place, (example, row, prompt) in enumerate(found)
    ]


def prompt_ids(tokenizer: Any, ids: list[int], max_tokens: int) -> list[int]:
    """A prompt's tokens behind what the tokenizer puts before every text; its beginning gives way."""
    begin = beginning(tokenizer)
    return begin + ids[max(0, len(ids) - max_tokens + len(begin)) :]


def _first_half(ids: list[int]) -> list[int]:
    return ids[: max(1, len(ids) // 2)]


def in_batches(items: Sequence[Item], lengths: Sequence[int], batch_size: int) -> list[list[Item]]:
    """Batches of items of like length, longest first: little padding, and memory runs out at once or never.

    Which items run together depends on nothing else, so numbers do not change with the number of ranks.
    """
    order = sorted(range(len(items)), key=lambda place: -lengths[place])
    return [
        [items[place] for place in order[at : at + batch_size]] for at in range(0, len(order), batch_size)
    ]
