"""Scores reference answers in one causal pass over prompt and answer, with their routing recorded.

Letters: B rows, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, nll_loss

from dwellmoe.data.collate import IGNORED_LABEL, PaddingCollator
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
    untouched_nll: float | None = None
    """`nll` by the router's own choice; with `divergence` None where nothing was re-routed."""

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
    prompt_tokens = [row["prompt_tokens"] for row in rows]
    _describe(evaluated, batch["attention_mask"], range(len(rows)), prompt_tokens)
    return _scores(_forward(evaluated, batch, None), batch)


def score_and_record(evaluated: EvaluatedModel, requests: Sequence[Request]) -> Scored:
    """One causal pass over prompts and reference answers: prompt tokens are prefill, answer tokens decode."""
    batch = _batch(evaluated, [request.row for request in requests])
    recorder = TraceRecorder(evaluated.moe_layers, gate_probs=True)
    prompt_tokens = [request.row["prompt_tokens"] for request in requests]
    request_ids = [request.request_id for request in requests]
    plain = _untouched(evaluated, batch)
    _describe(evaluated, batch["attention_mask"], request_ids, prompt_tokens)
    scores = _scores(_forward(evaluated, batch, recorder), batch, plain)
    decoded = _decoded(batch["attention_mask"], prompt_tokens)
    recorder.add(request_ids, batch["attention_mask"], decoded, batch["input_ids"])
    trace = recorder.trace(evaluated.name, "teacher_forced", evaluated.expert_bytes)
    return Scored(scores, recording_of(trace))


def score_as_decoded(
    evaluated: EvaluatedModel, request_id: int, prompt_ids: list[int], text_ids: list[int]
) -> Score:
    """Scores a text after its prompt, with the cache in the state in which decoding it would leave it: the
    last token of a text is never run. A text without tokens is not run at all.
    """
    if not text_ids:
        return Score(0.0, 0)
    labels = [IGNORED_LABEL] * len(prompt_ids) + text_ids
    batch = _batch(evaluated, [{"input_ids": prompt_ids + text_ids, "labels": labels}])
    plain = _untouched(evaluated, batch)
    ran_BT = batch["attention_mask"].clone()
    ran_BT[:, -1] = 0
    _describe(evaluated, ran_BT, [request_id], [len(prompt_ids)])
    (score,) = _scores(_forward(evaluated, batch, None), batch, plain)
    return score


def _untouched(evaluated: EvaluatedModel, batch: dict[str, Tensor]) -> Tensor | None:
    """Logits by the router's own choice; None where nothing is re-routed."""
    rerouted = evaluated.rerouting is not None and evaluated.rerouting.reroutes
    return _forward(replace(evaluated, rerouting=None), batch, None) if rerouted else None


def _batch(evaluated: EvaluatedModel, rows: Sequence[Any]) -> dict[str, Tensor]:
    batch = PaddingCollator(evaluated.pad_token_id)(rows)
    del batch["segment_ids"]
    return batch


def _decoded(valid_BT: Tensor, prompt_tokens: Sequence[int]) -> Tensor:
    """bool [B, T]: tokens after the prompt."""
    return torch.arange(valid_BT.shape[1]) >= torch.tensor(prompt_tokens)[:, None]


def _describe(
    evaluated: EvaluatedModel,
    valid_BT: Tensor,
    request_ids: Sequence[int],
    prompt_tokens: Sequence[int],
) -> None:
    if evaluated.rerouting:
        decoded_BT = _decoded(valid_BT, prompt_tokens)
        evaluated.rerouting.describe(request_ids, valid_BT.numpy(), decoded_BT.numpy())


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
    targets = labels_T[1:][scored]
    losses = cross_entropy(found_TV, targets, reduction="sum")
    divergence = untouched_nll = None
    if plain_TV is not None:
        log_q = found_TV.log_softmax(-1)
        log_p = plain_TV[:-1][scored].float().log_softmax(-1)
        divergence = float(kl_div(log_q, log_p, reduction="sum", log_target=True))
        untouched_nll = float(nll_loss(log_p, targets, reduction="sum"))
    return Score(float(losses), int(scored.sum()), divergence, untouched_nll)
