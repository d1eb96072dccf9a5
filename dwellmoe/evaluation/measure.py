"""Measures one variant of the model on all requests: scores, answers, likelihood of choices, routing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from tqdm import tqdm

from dwellmoe.evaluation.answers.choices import ChoiceRow, ChoiceScore, likeliest_is_right
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, start_rerouting
from dwellmoe.evaluation.free_running import FreeModels, FreeText, write_freely
from dwellmoe.evaluation.generation import Answer, Timing, generate
from dwellmoe.evaluation.kept_batches import KeptBatches
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.recording import Recording, join
from dwellmoe.evaluation.requests import Request, in_batches
from dwellmoe.evaluation.rerouting import FreeRunning, ReroutingSettings
from dwellmoe.evaluation.teacher_forced import Score, score_and_record, score_rows

Item = TypeVar("Item")
Result = TypeVar("Result")
Tallies = dict[int, np.ndarray]
"""Request id -> what a cache counted for it, int [L, 6] as in `routing/simulated_cache.py`."""


@dataclass(frozen=True)
class Workload:
    """What every variant is measured on, in batches; a batch is the unit that ranks share out."""

    scored: list[list[Request]]
    generated: list[list[Request]]
    choices: list[list[ChoiceRow]]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    """Texts that end an answer."""
    free_running: FreeRunning | None = None
    """Has the model write freely, too, after the prompts of `generated`."""

    @property
    def free(self) -> list[list[Request]]:
        """The batches after whose prompts the model writes freely."""
        return self.generated if self.free_running else []

    @property
    def batches(self) -> int:
        return len(self.scored) + len(self.generated) + len(self.choices) + len(self.free)


@dataclass(frozen=True)
class Measured:
    """One variant: recordings by text (`teacher_forced`, `generated`, `free_running`), the rest by request
    id.
    """

    recordings: dict[str, Recording]
    scores: dict[int, Score]
    choice_right: dict[int, float]
    """1.0 where the reference is likelier than every other choice, else 0.0."""
    answers: dict[int, Answer]
    tallies: dict[str, Tallies] = field(default_factory=dict)
    """By text, for a variant that was routed by a cache."""
    timings: list[Timing] = field(default_factory=list)
    """Of each batch of answers; with `merged_timings` the only part in which two runs differ."""
    merged_timings: list[Timing] = field(default_factory=list)
    """Of some batches with the variant's adapter merged into the weights."""
    free_texts: dict[int, FreeText] = field(default_factory=dict)
    """What a variant that was routed by a cache wrote freely."""

    @property
    def free_answers(self) -> dict[int, Answer]:
        """The texts of `free_texts` alone."""
        return {request_id: text.answer for request_id, text in self.free_texts.items()}


class _ScoredBatch(NamedTuple):
    scores: dict[int, Score]
    recording: Recording
    tallies: Tallies


class _GeneratedBatch(NamedTuple):
    answers: list[Answer]
    recording: Recording
    tallies: Tallies
    timing: Timing


class _FreeBatch(NamedTuple):
    texts: list[FreeText]
    recording: Recording
    tallies: Tallies


def workload(
    requests: Sequence[Request],
    choices: Sequence[ChoiceRow],
    batch_size: int,
    generate_limit: int,
    max_new_tokens: int,
    stop: tuple[str, ...] = (),
    free_running: FreeRunning | None = None,
) -> Workload:
    """Batches of like length; answers are generated to the first `generate_limit` requests."""
    answered = requests[:generate_limit]
    return Workload(
        scored=in_batches(requests, [len(request.row["input_ids"]) for request in requests], batch_size),
        generated=in_batches(answered, [len(request.prompt_ids) for request in answered], batch_size),
        choices=in_batches(choices, [len(choice.row["input_ids"]) for choice in choices], batch_size),
        max_new_tokens=max_new_tokens,
        stop=stop,
        free_running=free_running,
    )


def one_after_the_other(work: Workload) -> Workload:
    """The same work in the order of the requests, answered one at a time: as one cache serves them."""
    requests = _in_order(work.scored)
    size = max(map(len, work.scored))
    scored = [requests[begin : begin + size] for begin in range(0, len(requests), size)]
    return replace(work, scored=scored, generated=[[request] for request in _in_order(work.generated)])


def _in_order(batches: Sequence[Sequence[Request]]) -> list[Request]:
    return sorted((request for batch in batches for request in batch), key=lambda r: r.request_id)


def measure(
    evaluated: EvaluatedModel,
    work: Workload,
    ranks: Ranks,
    variant: str,
    rerouting: ReroutingSettings | None = None,
    kept: KeptBatches | None = None,
) -> Measured | None:
    """Everything about the variant that is active now; None on every rank but the first.

    With `rerouting` the model routes as if memory were small; each kind of text starts with an empty cache.
    What `kept` holds is not measured again, and what is measured is kept there.
    """
    scoring, generating, ranking, *writing = (
        replace(evaluated, rerouting=start_rerouting(rerouting, evaluated) if rerouting else None)
        for _ in range(6 if work.free else 3)
    )
    with tqdm(total=work.batches, desc=variant, unit="batch", disable=not ranks.first) as bar:
        shares = _Shares(ranks, bar, variant, kept, in_one_go=rerouting is not None)
        scored = shares.run("scored", work.scored, lambda batch: _score(scoring, batch))
        generated = shares.run("generated", work.generated, lambda batch: _generate(generating, batch, work))
        ranked = shares.run("ranked", work.choices, lambda batch: _rank(ranking, batch))
        free = shares.run("free", work.free, lambda batch: _write(FreeModels(*writing), batch, work))
    return _merged(scored, generated, ranked, free) if ranks.first else None


def _score(evaluated: EvaluatedModel, batch: list[Request]) -> _ScoredBatch:
    scored = score_and_record(evaluated, batch)
    request_ids = [request.request_id for request in batch]
    scores = dict(zip(request_ids, scored.scores, strict=True))
    return _ScoredBatch(scores, scored.recording, _tallies(evaluated, request_ids))


def _generate(evaluated: EvaluatedModel, batch: list[Request], work: Workload) -> _GeneratedBatch:
    request_ids = [request.request_id for request in batch]
    prompts = [request.prompt_ids for request in batch]
    generated = generate(evaluated, request_ids, prompts, work.max_new_tokens, stop=work.stop)
    return _GeneratedBatch(
        answers=generated.answers,
        recording=generated.recording,
        tallies=_tallies(evaluated, request_ids),
        timing=generated.timing,
    )


def _tallies(evaluated: EvaluatedModel, request_ids: Sequence[int]) -> Tallies:
    if evaluated.rerouting is None:
        return {}
    return {request_id: evaluated.rerouting.tallies[request_id] for request_id in request_ids}


def _write(models: FreeModels, batch: list[Request], work: Workload) -> _FreeBatch:
    assert work.free_running is not None
    found = [write_freely(models, request, work.free_running) for request in batch]
    tallies = _tallies(models.writing, [request.request_id for request in batch])
    texts, recordings = zip(*found, strict=True)
    return _FreeBatch(list(texts), join(recordings), tallies)


def _rank(evaluated: EvaluatedModel, batch: list[ChoiceRow]) -> list[ChoiceScore]:
    scores = score_rows(evaluated, [choice.row for choice in batch])
    return [ChoiceScore(choice.request_id, score) for choice, score in zip(batch, scores, strict=True)]


@dataclass(frozen=True)
class _Shares:
    """The batches that this rank measures of one variant, or finds measured."""

    ranks: Ranks
    bar: Any
    variant: str
    kept: KeptBatches | None
    in_one_go: bool
    """Whether a batch depends on those before it: of such batches all are found, or none."""

    def run(self, kind: str, batches: Sequence[Item], measure: Callable[[Item], Result]) -> list[Result]:
        """The results of all batches of a kind, on the first rank, in the batches' order."""
        share = self.ranks.share(batches)
        kept = self._usable(f"{self.variant}-{kind}", [index for index, _ in share])
        results = []
        for index, batch in share:
            name = f"{self.variant}-{kind}-{index}"
            result = kept.get_or(name, partial(measure, batch)) if kept else measure(batch)
            results.append((index, result))
            self.bar.update(self.ranks.world_size)
        return self.ranks.gather(results)

    def _usable(self, name: str, indices: Sequence[int]) -> KeptBatches | None:
        if self.kept is None or not self.in_one_go:
            return self.kept
        complete = all(self.kept.get(f"{name}-{index}") is not None for index in indices)
        return self.kept if complete else replace(self.kept, resume=False)


def _merged(
    scored: list[_ScoredBatch],
    generated: list[_GeneratedBatch],
    ranked: list[list[ChoiceScore]],
    free: list[_FreeBatch],
) -> Measured:
    scores = {request_id: score for batch in scored for request_id, score in batch.scores.items()}
    answers = {answer.request_id: answer for batch in generated for answer in batch.answers}
    free_texts = {text.answer.request_id: text for batch in free for text in batch.texts}
    batches = {"teacher_forced": scored, "generated": generated, "free_running": free}
    batches = {text: found for text, found in batches.items() if found}
    tallies = {text: _joined([batch.tallies for batch in found]) for text, found in batches.items()}
    return Measured(
        recordings={text: join([batch.recording for batch in found]) for text, found in batches.items()},
        scores=dict(sorted(scores.items())),
        choice_right=likeliest_is_right(scores, [score for batch in ranked for score in batch]),
        answers=dict(sorted(answers.items())),
        tallies={text: found for text, found in tallies.items() if found},
        timings=[batch.timing for batch in generated],
        free_texts=dict(sorted(free_texts.items())),
    )


def with_texts_named(
    measured: dict[str, Measured], requests: Sequence[Request], chat_template: bool
) -> dict[str, Measured]:
    """The same, with the data set of each request, and whether a chat template was used, in the traces."""
    categories = {request.request_id: request.example.task for request in requests if request.example.task}
    known = {"categories": categories or None, "chat_template": chat_template}
    return {
        name: replace(found, recordings=_named(found.recordings, known)) for name, found in measured.items()
    }


def _named(recordings: dict[str, Recording], known: dict[str, Any]) -> dict[str, Recording]:
    return {
        text: replace(recording, trace=replace(recording.trace, **known))
        for text, recording in recordings.items()
    }


def _joined(parts: Sequence[Tallies]) -> Tallies:
    return dict(sorted((request_id, tally) for part in parts for request_id, tally in part.items()))
