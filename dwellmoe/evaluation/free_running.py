"""Text that a re-routed model writes by itself, so that its errors feed back, and what it costs there.

Written text is scored like reference text, by the model as it was re-routed and by its routers' own choice,
and beside it the reference text of the same prompt: what re-routing costs more on its own text than on that
is feedback.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import Answer, generate
from dwellmoe.evaluation.recording import Recording
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.rerouting import FreeRunning
from dwellmoe.evaluation.teacher_forced import Score, score_as_decoded


class FreeModels(NamedTuple):
    """The model for each of the three passes over all requests, each with a cache of its own."""

    writing: EvaluatedModel
    """Writes the text."""
    rereading: EvaluatedModel
    """Scores what was written; its cache goes through the same states."""
    reference: EvaluatedModel
    """Scores the reference text."""


@dataclass(frozen=True)
class FreeText:
    """What was written after one prompt, its score, and that of as many tokens of the reference at most."""

    answer: Answer
    written: Score
    reference: Score


def write_freely(models: FreeModels, request: Request, settings: FreeRunning) -> tuple[FreeText, Recording]:
    """The text of one request, and the routing of its prompt and text. Requests come in order."""
    with _drawn_from(settings.seed, request.request_id):
        generated = generate(
            models.writing,
            [request.request_id],
            [request.prompt_ids],
            settings.tokens,
            temperature=settings.temperature,
            as_predicted=True,
        )
    (answer,) = generated.answers
    scored = request.request_id, request.prompt_ids
    text = FreeText(
        answer=answer,
        written=score_as_decoded(models.rereading, *scored, answer.written_ids),
        reference=score_as_decoded(models.reference, *scored, reference_ids(request)[: settings.tokens]),
    )
    return text, generated.recording


def reference_ids(request: Request) -> list[int]:
    """What follows a request's prompt in its data: the answer, or the rest of a window of running text."""
    begin = request.row["prompt_tokens"] if request.has_prompt else len(request.prompt_ids)
    return list(request.row["input_ids"][begin:])


@contextmanager
def _drawn_from(seed: int, request_id: int) -> Iterator[None]:
    """A block whose draws depend on seed and request alone; the generators are then as they were before."""
    state = np.random.SeedSequence((seed % 2**32, request_id)).generate_state(1)
    with torch.random.fork_rng():
        torch.manual_seed(int(state[0]))
        yield
