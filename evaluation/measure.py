"""Knows in what order a variant is measured and what that leaves behind; makes no numbers of a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

from evaluation.choices import chosen_rightly
from evaluation.generation import Answer, generate
from evaluation.ranks import Ranks
from evaluation.recording import Recording, join
from evaluation.requests import Request, in_batches
from evaluation.subject import Subject
from evaluation.teacher_forced import Score, score_and_record, score_rows

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Workload:
    """What every variant is measured on, in batches; a batch is the unit that ranks share out."""

    scored: list[list[Request]]
    generated: list[list[Request]]
    choices: list[list[tuple[int, dict]]]
    max_new_tokens: int

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


def workload(
    requests: Sequence[Request],
    choices: Sequence[tuple[int, dict]],
    batch_size: int,
    generate_limit: int,
    max_new_tokens: int,
) -> Workload:
    """Batches of like length; the first `generate_limit` requests are answered too."""
    lengths = [len(request.row["input_ids"]) for request in requests]
    answered = requests[:generate_limit]
    return Workload(
        in_batches(requests, lengths, batch_size),
        in_batches(answered, [len(request.prompt_ids) for request in answered], batch_size),
        in_batches(choices, [len(row["input_ids"]) for _, row in choices], batch_size),
        max_new_tokens,
    )


def measure(subject: Subject, work: Workload, ranks: Ranks, variant: str) -> Measured | None:
    """Everything about the variant that is active now; None on every rank but the first."""
    with tqdm(total=work.batches, desc=variant, unit="batch", disable=not ranks.first) as bar:
        scored = _shared(ranks, bar, work.scored, lambda batch: _score(subject, batch))
        generated = _shared(ranks, bar, work.generated, lambda batch: _generate(subject, batch, work))
        ranked = _shared(ranks, bar, work.choices, lambda batch: _rank(subject, batch))
    return _merged(scored, generated, ranked) if ranks.first else None


def _score(subject: Subject, batch: list[Request]) -> tuple[dict[int, Score], Recording]:
    scores, recording = score_and_record(subject, batch)
    return {request.number: score for request, score in zip(batch, scores, strict=True)}, recording


def _generate(subject: Subject, batch: list[Request], work: Workload) -> tuple[list[Answer], Recording]:
    numbers, prompts = [r.number for r in batch], [r.prompt_ids for r in batch]
    return generate(subject, numbers, prompts, work.max_new_tokens)


def _rank(subject: Subject, batch: list[tuple[int, dict]]) -> list[tuple[int, Score]]:
    scores = score_rows(subject, [row for _, row in batch])
    return [(number, score) for (number, _), score in zip(batch, scores, strict=True)]


def _shared(ranks: Ranks, bar: Any, batches: Sequence[Item], run: Callable[[Item], Result]) -> list[Result]:
    """What `run` made of all batches, on the first rank, in the batches' order."""
    results = []
    for place, batch in ranks.share(batches):
        results.append((place, run(batch)))
        bar.update(ranks.of)
    return ranks.gather(results)


def _merged(scored: list, generated: list, ranked: list) -> Measured:
    scores = {number: score for part, _ in scored for number, score in sorted(part.items())}
    recordings = {"teacher_forced": join([recording for _, recording in scored])}
    if generated:
        recordings["generated"] = join([recording for _, recording in generated])
    answers = {answer.number: answer for part, _ in generated for answer in part}
    rightly = chosen_rightly(scores, [pair for part in ranked for pair in part])
    return Measured(recordings, dict(sorted(scores.items())), rightly, dict(sorted(answers.items())))
