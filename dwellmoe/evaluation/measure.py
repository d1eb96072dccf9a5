"""Knows in what order a variant is measured and what that leaves behind; makes no numbers of a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from dwellmoe.evaluation.answers.choices import chosen_rightly
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import Answer, generate
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.recording import Recording, join
from dwellmoe.evaluation.requests import Request, in_batches
from dwellmoe.evaluation.rerouting_settings import ReroutingSettings
from dwellmoe.evaluation.teacher_forced import Score, score_and_record, score_rows
from dwellmoe.evaluation.timing import Timing

Item = TypeVar("Item")
Result = TypeVar("Result")
Tallies = dict[int, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """What every variant is measured on, in batches; a batch is the unit that ranks share out."""

    scored: list[list[Request]]
    generated: list[list[Request]]
    choices: list[list[tuple[int, dict]]]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""

    @property
    def batches(self) -> int:
        return len(self.scored) + len(self.generated) + len(self.choices)


@dataclass(frozen=True)
class Measured:
    """One variant: recordings by text (`teacher_forced`, `generated`), the rest by request number."""

    recordings: dict[str, Recording]
    scores: dict[int, Score]
    rightly: dict[int, float]
    answers: dict[int, Answer]
    tallies: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    """Text -> what a virtual cache counted a request, where there was one."""
    timings: list[Timing] = field(default_factory=list)
    """Of each batch that was answered; beside everything else, as two runs never agree in them."""


def workload(
    requests: Sequence[Request],
    choices: Sequence[tuple[int, dict]],
    batch_size: int,
    generate_limit: int,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
) -> Workload:
    """Batches of like length; the first `generate_limit` requests are answered too."""
    lengths = [len(request.row["input_ids"]) for request in requests]
    answered = requests[:generate_limit]
    return Workload(
        in_batches(requests, lengths, batch_size),
        in_batches(answered, [len(request.prompt_ids) for request in answered], batch_size),
        in_batches(choices, [len(row["input_ids"]) for _, row in choices], batch_size),
        max_new_tokens,
        stop,
    )


def one_after_the_other(work: Workload) -> Workload:
    """The same work in the order of the requests, answered one at a time: as one cache serves them."""
    requests = sorted((request for batch in work.scored for request in batch), key=lambda r: r.number)
    size = max(map(len, work.scored))
    scored = [requests[at : at + size] for at in range(0, len(requests), size)]
    answered = sorted((request for batch in work.generated for request in batch), key=lambda r: r.number)
    return replace(work, scored=scored, generated=[[request] for request in answered])


def measure(
    evaluated: EvaluatedModel,
    work: Workload,
    ranks: Ranks,
    variant: str,
    setup: ReroutingSettings | None = None,
) -> Measured | None:
    """Everything about the variant that is active now; None on every rank but the first.

    `setup`: route as if memory were small, each kind of text through an empty cache of its own.
    """
    evaluated_models = [
        replace(evaluated, virtual=setup.cache(evaluated) if setup else None) for _ in range(3)
    ]
    with tqdm(total=work.batches, desc=variant, unit="batch", disable=not ranks.first) as bar:
        scored = _shared(ranks, bar, work.scored, lambda batch: _score(evaluated_models[0], batch))
        generated = _shared(
            ranks, bar, work.generated, lambda batch: _generate(evaluated_models[1], batch, work)
        )
        ranked = _shared(ranks, bar, work.choices, lambda batch: _rank(evaluated_models[2], batch))
    return _merged(scored, generated, ranked) if ranks.first else None


def _score(evaluated: EvaluatedModel, batch: list[Request]) -> tuple[dict[int, Score], Recording, Tallies]:
    scores, recording = score_and_record(evaluated, batch)
    numbers = [request.number for request in batch]
    return dict(zip(numbers, scores, strict=True)), recording, _tallies(evaluated, numbers)


def _generate(
    evaluated: EvaluatedModel, batch: list[Request], work: Workload
) -> tuple[list[Answer], Recording, Tallies, list[Timing]]:
    numbers, prompts = [r.number for r in batch], [r.prompt_ids for r in batch]
    timings: list[Timing] = []
    answered = generate(evaluated, numbers, prompts, work.max_new_tokens, work.stop, timings)
    return *answered, _tallies(evaluated, numbers), timings


def _tallies(evaluated: EvaluatedModel, numbers: Sequence[int]) -> Tallies:
    return {number: evaluated.virtual.tallies[number] for number in numbers} if evaluated.virtual else {}


def _rank(evaluated: EvaluatedModel, batch: list[tuple[int, dict]]) -> list[tuple[int, Score]]:
    scores = score_rows(evaluated, [row for _, row in batch])
    return [(number, score) for (number, _), score in zip(batch, scores, strict=True)]


def _shared(ranks: Ranks, bar: Any, batches: Sequence[Item], run: Callable[[Item], Result]) -> list[Result]:
    """What `run` made of all batches, on the first rank, in the batches' order."""
    results = []
    for place, batch in ranks.share(batches):
        results.append((place, run(batch)))
        bar.update(ranks.of)
    return ranks.gather(results)


def _merged(scored: list, generated: list, ranked: list) -> Measured:
    scores = {number: score for part, _, _ in scored for number, score in sorted(part.items())}
    results = {"teacher_forced": scored} | ({"generated": generated} if generated else {})
    recordings = {text: join([part[1] for part in parts]) for text, parts in results.items()}
    tallies = {text: _joined([part[2] for part in parts]) for text, parts in results.items()}
    answers = {answer.number: answer for part, *_ in generated for answer in part}
    timings = [timing for *_, part in generated for timing in part]
    rightly = chosen_rightly(scores, [pair for part in ranked for pair in part])
    in_order = dict(sorted(scores.items())), rightly, dict(sorted(answers.items()))
    counted = {text: found for text, found in tallies.items() if found}
    return Measured(recordings, *in_order, counted, timings)


def _joined(parts: Sequence[Tallies]) -> Tallies:
    return dict(sorted((number, tally) for part in parts for number, tally in part.items()))
