"""Knows which requests are measured and how they are shared out in batches; does not run them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from data_pipeline.examples import Example, load_examples
from data_pipeline.sampling import seeded_sample
from data_pipeline.task import Task
from data_pipeline.tokenised import encode_examples
from errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Request:
    """One row of tokens: a prompt and its reference answer, or a window of running text (no prompt)."""

    number: int
    row: dict[str, Any]
    """`input_ids`, `labels`, `prompt_tokens` as the training data have them."""
    example: Example
    has_prompt: bool

    @property
    def prompt_ids(self) -> list[int]:
        """What generation starts from: the prompt; of running text the first half of its window."""
        tokens = self.row["prompt_tokens"] if self.has_prompt else max(1, len(self.row["input_ids"]) // 2)
        return self.row["input_ids"][:tokens]


def load_requests(
    task: Task, split: str, tokenizer: Any, max_tokens: int, limit: int, seed: int
) -> list[Request]:
    """A seeded sample of `limit` examples of a split (0: all) as numbered requests. Raises UserError."""
    examples = seeded_sample(load_examples(task, split, seed=seed), limit or None, seed)
    if not examples:
        raise UserError(f"{task.name}: the split '{split}' is empty")
    asked = [example for example in examples if example.prompt]
    pairs = list(zip(asked, encode_examples(asked, tokenizer, max_tokens), strict=True)) if asked else []
    for example in examples:
        if not example.prompt:
            pairs += [(example, row) for row in encode_examples([example], tokenizer, max_tokens)]
    return [
        Request(place, dict(row), example, bool(example.prompt)) for place, (example, row) in enumerate(pairs)
    ]


def in_batches(items: Sequence[Item], lengths: Sequence[int], batch_size: int) -> list[list[Item]]:
    """Batches of items of like length, longest first: little padding, and memory runs out at once or never.

    Which items run together depends on nothing else, so numbers do not change with the number of ranks.
    """
    order = sorted(range(len(items)), key=lambda place: -lengths[place])
    return [
        [items[place] for place in order[at : at + batch_size]] for at in range(0, len(order), batch_size)
    ]
