"""Knows how reference answers are scored and their routing recorded; does not know what a score means.

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from data_pipeline.collate import PaddingCollator
from evaluation.recording import Recording, recording_of
from evaluation.requests import Request
from evaluation.subject import Subject
from routing import RouterTap
from routing.trace_recorder import TraceRecorder


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood (nats) of a reference answer's tokens, its end token included, summed."""

    nll: float
    tokens: int


def score_rows(subject: Subject, rows: Sequence[Any]) -> list[Score]:
    """Scores rows of `input_ids` and `labels`; nothing is recorded."""
    return _forward(subject, _batch(subject, rows), None)


def score_and_record(subject: Subject, requests: Sequence[Request]) -> tuple[list[Score], Recording]:
    """One causal pass over prompts and reference answers: prompt tokens are prefill, answer tokens decode."""
    batch = _batch(subject, [request.row for request in requests])
    recorder = TraceRecorder(subject.moe_layers, gate_probs=True)
    scores = _forward(subject, batch, recorder)
    positions = torch.arange(batch["input_ids"].shape[1])
    prompts = torch.tensor([request.row["prompt_tokens"] for request in requests])
    numbers = [request.number for request in requests]
    recorder.add(numbers, batch["attention_mask"], positions >= prompts[:, None], batch["input_ids"])
    return scores, recording_of(recorder.trace(subject.name, "teacher_forced", subject.expert_bytes))


def _batch(subject: Subject, rows: Sequence[Any]) -> dict[str, Tensor]:
    batch = PaddingCollator(subject.pad_token_id)(rows)
    del batch["segment_ids"]
    return batch


@torch.inference_mode()
def _forward(subject: Subject, batch: dict[str, Tensor], recorder: TraceRecorder | None) -> list[Score]:
    inputs = {name: batch[name].to(subject.model.device) for name in ("input_ids", "attention_mask")}
    with RouterTap(subject.model, subject.moe_layers, [recorder]) if recorder else nullcontext():
        logits_BTV = subject.model(**inputs, use_cache=False).logits
    return [_score(*row) for row in zip(logits_BTV, batch["labels"].to(logits_BTV.device), strict=True)]


def _score(logits_TV: Tensor, labels_T: Tensor) -> Score:
    scored = labels_T[1:] >= 0
    losses = cross_entropy(logits_TV[:-1][scored].float(), labels_T[1:][scored], reduction="sum")
    return Score(float(losses), int(scored.sum()))
