"""Scores reference answers in one causal pass over prompt and answer, with their routing recorded.

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from dwellmoe.data.collate import PaddingCollator
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.recording import Recording, recording_of
from dwellmoe.evaluation.requests import Request
from dwellmoe.families.not_finite import refuse_nan
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood (nats) of a reference answer's tokens, its end token included, summed."""

    nll: float
    tokens: int
    divergence: float | None = None
    """KL(p || q) of the next token, summed: p by the router's own choice, q as it was re-routed."""

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nll / max(1, self.tokens)


class Scored(NamedTuple):
    """The scores of one batch, in its order, and its routing."""

    scores: list[Score]
    recording: Recording


def score_rows(evaluated: EvaluatedModel, rows: Sequence[Any]) -> list[Score]:
    """Scores rows of `input_ids` and `labels`; nothing is recorded."""
    batch = _batch(evaluated, rows)
    _describe(evaluated, batch, range(len(rows)), [row["prompt_tokens"] for row in rows])
    return _scores(_forward(evaluated, batch, None), batch)


def score_and_record(evaluated: EvaluatedModel, requests: Sequence[Request]) -> Scored:
    """One causal pass over prompts and reference answers: prompt tokens are prefill, answer tokens decode."""
    batch = _batch(evaluated, [request.row for request in requests])
    recorder = TraceRecorder(evaluated.moe_layers, gate_probs=True)
    prompt_tokens = [request.row["prompt_tokens"] for request in requests]
    request_ids = [request.request_id for request in requests]
    rerouted = evaluated.rerouting is not None and evaluated.rerouting.reroutes
    plain = _forward(replace(evaluated, rerouting=None), batch, None) if rerouted else None
    _describe(evaluated, batch, request_ids, prompt_tokens)
    scores = _scores(_forward(evaluated, batch, recorder), batch, plain)
    recorder.add(request_ids, batch["attention_mask"], _decoded(batch, prompt_tokens), batch["input_ids"])
    trace = recorder.trace(evaluated.name, "teacher_forced", evaluated.expert_bytes)
    return Scored(scores, recording_of(trace))


def _batch(evaluated: EvaluatedModel, rows: Sequence[Any]) -> dict[str, Tensor]:
    batch = PaddingCollator(evaluated.pad_token_id)(rows)
    del batch["segment_ids"]
    return batch


def _decoded(batch: dict[str, Tensor], prompt_tokens: Sequence[int]) -> Tensor:
    """bool [B, T]: tokens after the prompt."""
    return torch.arange(batch["input_ids"].shape[1]) >= torch.tensor(prompt_tokens)[:, None]


def _describe(
    evaluated: EvaluatedModel,
    batch: dict[str, Tensor],
    request_ids: Sequence[int],
    prompt_tokens: Sequence[int],
) -> None:
    if evaluated.rerouting:
        decoded = _decoded(batch, prompt_tokens)
        evaluated.rerouting.describe(request_ids, batch["attention_mask"].numpy(), decoded.numpy())


@torch.inference_mode()
def _forward(evaluated: EvaluatedModel, batch: dict[str, Tensor], recorder: TraceRecorder | None) -> Tensor:
    """Logits of all tokens, [B, T, V]."""
    inputs = {name: batch[name].to(evaluated.model.device) for name in ("input_ids", "attention_mask")}
    observers = [recorder] if recorder else []
    tap = nullcontext()
    if observers or evaluated.rerouting:
        tap = RouterTap(evaluated.model, evaluated.moe_layers, observers, evaluated.rerouting)
    with tap:
        logits_BTV = evaluated.model(**inputs, use_cache=False).logits
    refuse_nan(evaluated.model, logits_BTV.amax(-1)[inputs["attention_mask"].bool()], inputs)
    return logits_BTV


def _scores(logits_BTV: Tensor, batch: dict[str, Tensor], plain_BTV: Tensor | None = None) -> list[Score]:
    labels_BT = batch["labels"].to(logits_BTV.device)
    plain = [None] * len(logits_BTV) if plain_BTV is None else plain_BTV
    return [_score(*row) for row in zip(logits_BTV, labels_BT, plain, strict=True)]


def _score(logits_TV: Tensor, labels_T: Tensor, plain_TV: Tensor | None) -> Score:
    scored = labels_T[1:] >= 0
    found_TV = logits_TV[:-1][scored].float()
    losses = cross_entropy(found_TV, labels_T[1:][scored], reduction="sum")
    divergence = None
    if plain_TV is not None:
        log_q = found_TV.log_softmax(-1)
        log_p = plain_TV[:-1][scored].float().log_softmax(-1)
        divergence = float(kl_div(log_q, log_p, reduction="sum", log_target=True))
    return Score(float(losses), int(scored.sum()), divergence)
