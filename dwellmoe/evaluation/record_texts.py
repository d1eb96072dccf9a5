"""Records a loaded model's routing on a user's texts: as they stand, or as prompts that it goes on from."""

from collections.abc import Sequence
from dataclasses import replace

from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.data.context import context_tokens
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import generate
from dwellmoe.evaluation.recording import join
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.routing.record import record_rows

LONGEST_ROW = 2048
"""Tokens of a request that is cut from a longer text, unless the model's context is shorter."""


def record_texts(
    evaluated: EvaluatedModel,
    texts: Sequence[str],
    *,
    max_tokens: int | None = None,
    batch_size: int = 8,
    gate_probs: bool = False,
    progress: Progress | None = None,
) -> RoutingTrace:
    """The routing of texts as they stand (see `dwellmoe.record`).

    A text of more than `max_tokens` (default: the context, at most 2,048) becomes several requests, one after
    the other, none of which sees the tokens before it. Raises UserError.
    """
    most = max_tokens or min(LONGEST_ROW, context_tokens(evaluated.model.config) or LONGEST_ROW)
    rows = [evaluated.tokenizer(text)["input_ids"] for text in texts]
    pieces = [row[begin : begin + most] for row in rows for begin in range(0, len(row), most)]
    if not pieces:
        raise UserError("the texts have no tokens")
    return record_rows(
        evaluated.model,
        evaluated.tokenizer,
        pieces,
        batch_size=batch_size,
        gate_probs=gate_probs,
        progress=progress,
    )


def record_answers(
    evaluated: EvaluatedModel, prompts: Sequence[str], new_tokens: int, progress: Progress | None = None
) -> RoutingTrace:
    """The routing of prompts, as prefill, and of what the model generates after them, greedily, as decode.

    Prompts run one after the other, as at home. UserError for one that leaves no room in the context.
    """
    rows = [prompt_ids(evaluated.tokenizer, prompt, None).ids for prompt in prompts]
    _check_room(evaluated, rows, new_tokens)
    recordings = []
    for request, row in enumerate(rows):
        recordings.append(generate(evaluated, [request], [row], new_tokens).recording)
        if progress:
            progress(request + 1, len(rows))
    return replace(join(recordings).trace, source="generated")


def _check_room(evaluated: EvaluatedModel, rows: Sequence[list[int]], new_tokens: int) -> None:
    context = context_tokens(evaluated.model.config)
    for number, row in enumerate(rows, 1):
        if not row:
            raise UserError(f"prompt {number} has no tokens")
        if context and len(row) + new_tokens > context:
            raise UserError(
                f"--generate {new_tokens}: prompt {number} has {len(row)} tokens, and the model's context is "
                f"{context}"
            )
