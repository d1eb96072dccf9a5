"""Scoring, recording and generation against slow, obvious code that does the same."""

import numpy as np
import pytest
import torch

from dwellmoe.cache import metrics
from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task, load_task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.answers.choices import (
    ChoiceScore,
    choice_rows,
    likeliest_is_right,
    other_answers,
    states_answers,
)
from dwellmoe.evaluation.generation import Answer, generate, repeated_share
from dwellmoe.evaluation.measure import Measured, workload
from dwellmoe.evaluation.merged_speed import BATCHES, merged_timings
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.recording import has_pairs, join
from dwellmoe.evaluation.report.quality import quality_row
from dwellmoe.evaluation.requests import Request, SampleSpec, in_batches, load_requests
from dwellmoe.evaluation.teacher_forced import Score, score_and_record, score_rows
from dwellmoe.evaluation.text_lengths import text_lengths
from dwellmoe.loading import active_variant
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder


def alone(evaluated, ids):
    """Loss of each next token of one row, and the chosen sets [L, T], without padding."""
    recorder = TraceRecorder(evaluated.moe_layers)
    with torch.no_grad(), RouterTap(evaluated.model, evaluated.moe_layers, [recorder]):
        logits = evaluated.model(torch.tensor([ids])).logits[0]
    recorder.add([0], np.ones((1, len(ids))), np.ones((1, len(ids))))
    losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    return losses, recorder.trace().experts


@pytest.mark.parametrize("variant", ["base", "control", "tuned"])
def test_a_padded_batch_scores_and_routes_like_single_rows(evaluated, requests, variant):
    with active_variant(evaluated.model, variant):
        scores, recording = score_and_record(evaluated, requests[:3])
        for request, score in zip(requests[:3], scores, strict=True):
            losses, experts = alone(evaluated, request.row["input_ids"])
            answer = losses[request.row["prompt_tokens"] - 1 :]
            assert score.tokens == len(answer)
            assert score.nll == pytest.approx(float(answer.sum()), rel=1e-4)
            assert (recording.trace.experts[recording.trace.request == request.request_id] == experts).all()


def test_prompt_is_prefill_and_answer_is_decode(evaluated, requests):
    trace = score_and_record(evaluated, requests[:2]).recording.trace
    for request in requests[:2]:
        phase = trace.phase[trace.request == request.request_id]
        prompt = request.row["prompt_tokens"]
        assert phase.tolist() == [0] * prompt + [1] * (len(request.row["input_ids"]) - prompt)


def test_joined_batches_are_in_request_order_with_the_gds_of_all(evaluated, requests):
    parts = [score_and_record(evaluated, some).recording for some in (requests[2:5], requests[:2])]
    joined = join(parts)
    assert (np.diff(joined.trace.request) >= 0).all()
    assert joined.gates["decode"].pairs.sum() == metrics.ecr(joined.trace, "decode").pairs
    assert (joined.gates["decode"].sums <= joined.gates["decode"].pairs[:, None] + 1e-6).all()


def test_a_batch_generates_what_each_prompt_generates_alone(evaluated, requests):
    prompts = [request.prompt_ids for request in requests[:3]]
    together, recording, _ = generate(evaluated, [0, 1, 2], prompts, 5)
    for number, prompt in enumerate(prompts):
        answer, single, _ = generate(evaluated, [number], [prompt], 5)
        assert answer[0].token_ids == together[number].token_ids
        assert (single.trace.experts == recording.trace.experts[recording.trace.request == number]).all()


def test_repeated_share_counts_what_a_text_had_before():
    assert repeated_share([[1, 2, 3, 4, 5]]) == 0
    assert repeated_share([[7] * 7]) == pytest.approx(3 / 4)
    assert repeated_share([[1, 2]]) == 0


def test_batches_hold_everything_once_and_like_lengths_together():
    lengths = [3, 9, 1, 8, 2]
    batches = in_batches(range(5), lengths, 2)
    assert batches == [[1, 3], [0, 4], [2]]


def test_every_other_choice_is_ranked(workspace, evaluated, requests):
    task = load_task(str(workspace / "task" / "task.toml"))
    rows = choice_rows(task, requests, evaluated.tokenizer, 64, 2)
    assert [choice.request_id for choice in rows] == [0, 0, 1, 1]
    assert len(other_answers(task, requests[0].example)) == 2
    assert len(score_rows(evaluated, [choice.row for choice in rows])) == 4


def test_the_reference_must_beat_every_other_answer_a_token():
    reference = {0: Score(2.0, 2), 1: Score(2.0, 2)}
    others = [(0, Score(6.0, 3)), (0, Score(4.0, 2)), (1, Score(6.0, 3)), (1, Score(1.0, 2))]
    others = [ChoiceScore(*other) for other in others]
    assert likeliest_is_right(reference, others) == {0: 1.0, 1: 0.0}


def test_a_single_token_has_no_pair(evaluated, requests):
    generated = generate(evaluated, [0], [requests[0].prompt_ids], 2)
    assert not has_pairs(generated.recording.trace, "decode")


@pytest.mark.parametrize(
    ("form", "prompts", "stated"),
    [
        ("choice_text", ["A story"], False),
        ("choice_text", ["A story", "either red or blue"], True),
        ("option_letter", ["A story"], True),
        ("free_text", ["A story"], True),
    ],
)
def test_an_accuracy_needs_choices_that_the_prompts_state(form, prompts, stated):
    task = Task("t", None, (), form=form)  # type: ignore[arg-type]
    examples = [Example(prompt, "red", {"choices": ["red", "blue"]}) for prompt in prompts]
    assert states_answers(task, examples) is stated


def test_free_text_has_exact_matches_in_place_of_an_accuracy():
    task = Task("t", None, (), form="free_text", metric="accuracy")  # type: ignore[arg-type]
    requests = [Request(n, {}, Example("p", "red", {}, "t"), True, []) for n in range(2)]
    answers = {0: Answer(0, " Red.", []), 1: Answer(1, "redder", [])}
    found = Measured({}, {0: Score(1.0, 1)}, {}, answers)
    row = quality_row("base", task, requests, found, resamples=10).as_dict()
    assert row["exact_match"] == 0.5 and not {"accuracy", "no_answer"} & set(row)


@pytest.mark.parametrize("row_tokens", [6, 12, 64])
def test_cut_texts_are_counted(workspace, evaluated, row_tokens):
    task = load_task(str(workspace / "task" / "task.toml"))
    tokenizer = evaluated.tokenizer
    cut = load_requests(task, "test", tokenizer, SampleSpec(0, 3, 6, row_tokens), 42)
    whole = load_requests(task, "test", tokenizer, SampleSpec(0, 3, 6, 9999), 42)
    choices = choice_rows(task, cut, tokenizer, row_tokens, 9)
    work = workload(cut, choices, batch_size=2, generate_limit=3, max_new_tokens=6)
    found = text_lengths(cut, work, evaluated, allow_beyond_context=False)
    lost = [len(a.row["input_ids"]) > len(b.row["input_ids"]) for a, b in zip(whole, cut, strict=True)]
    assert found.cut_prompts == sum(lost) and found.cut_answers == found.beyond_context == 0
    lost = [len(a.prompt_ids) > len(b.prompt_ids) for a, b in zip(whole[:3], cut[:3], strict=True)]
    assert found.cut_generation_prompts == sum(lost)
    assert (f"{row_tokens} tokens" in found.remark(row_tokens)) == bool(found.cut_prompts)
    assert bool(found.cut_choices) == bool(found.cut_prompts) == (row_tokens < 64)


def test_texts_beyond_the_context_are_refused_unless_allowed(evaluated, requests, monkeypatch):
    work = workload(requests, [], batch_size=2, generate_limit=3, max_new_tokens=6)
    longest = max(len(request.row["input_ids"]) for request in requests)
    monkeypatch.setattr(evaluated.model.config, "max_position_embeddings", longest - 1)
    with pytest.raises(UserError, match="--allow_beyond_context"):
        text_lengths(requests, work, evaluated, allow_beyond_context=False)
    assert text_lengths(requests, work, evaluated, allow_beyond_context=True).beyond_context >= 1


def test_the_merged_speed_leaves_the_model_as_it_was(evaluated, requests):
    work = workload(requests, [], batch_size=1, generate_limit=5, max_new_tokens=4)
    with active_variant(evaluated.model, "tuned"):
        before = score_rows(evaluated, [requests[0].row])
        timings = merged_timings(evaluated, work, Ranks(), "tuned")
        after = score_rows(evaluated, [requests[0].row])
    assert len(timings) == BATCHES and all(timing.prefill_seconds > 0 for timing in timings)
    assert after[0].nll == pytest.approx(before[0].nll, rel=1e-4)


def test_without_answers_nothing_is_merged(requests):
    work = workload(requests, [], batch_size=1, generate_limit=0, max_new_tokens=4)
    assert merged_timings(None, work, Ranks(), "tuned") == []  # type: ignore[arg-type]
