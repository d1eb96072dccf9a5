"""Predictions of expert use that need the model, made for every decoded token of a trace.

Letters: T tokens, L layers, E experts a layer.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dwellmoe.cache.prediction import Calibration, fit_eta, fuse, predictions, used_of
from dwellmoe.cache.predictors import PREDICTORS
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.recorded_predictions import RecordedPredictions, digest_of
from dwellmoe.cache.trace import DECODE, EMPTY, RoutingTrace
from dwellmoe.errors import UserError, unknown_name
from dwellmoe.eviction_training.requests import split_by_request
from dwellmoe.eviction_training.scoutgate import train_scoutgate
from dwellmoe.families import find_moe_layers
from dwellmoe.log import warn_once
from dwellmoe.routing.gate_ahead import margins_ahead
from dwellmoe.routing.router_tap import RouterTap
from dwellmoe.routing.scoutgate import ScoutGate, predict_scoutgate

GATE_AHEAD, SCOUTGATE = "gate_ahead", "scoutgate"
FUSED = f"{GATE_AHEAD}+{SCOUTGATE}"
NAMES = (GATE_AHEAD, SCOUTGATE, FUSED)
SAME_MODEL = 0.9
"""Share of a trace's experts that its own model chooses at least; other number types change a few."""


@dataclass(frozen=True)
class Source:
    """A model, the requests to learn from, those to tune shares on, and the trace to make predictions for."""

    model: Any
    train: RoutingTrace
    validation: RoutingTrace
    trace: RoutingTrace

    @classmethod
    def of(cls, model: Any, learned: RoutingTrace, trace: RoutingTrace) -> "Source":
        return cls(model, *whole_requests(learned), trace)


class PredictionsMade(NamedTuple):
    """Predictions for a trace, the ScoutGate that was trained for them if there is one, and facts of both."""

    predictions: RecordedPredictions
    gate: ScoutGate | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Predicted:
    """Predictions, float [T, L, E], for the decoded tokens of a source's trace and validation requests."""

    trace: np.ndarray
    validation: np.ndarray


def whole_requests(trace: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    """The split of `split_by_request` with the prompts left in, for their token ids."""
    held_out = set(split_by_request(trace, "decode", 0.2, seed=0).validation.request.tolist())
    inside = np.isin(trace.request, list(held_out))
    return trace.take(~inside), trace.take(inside)


def gate_ahead(source: Source) -> Predicted:
    """Predictions of each layer's own gate, run one layer early, as probabilities."""
    layers = find_moe_layers(source.model)

    def margins(trace: RoutingTrace) -> np.ndarray:
        return margins_ahead(source.model, layers, trace)

    probability = Calibration(margins(source.train), np.concatenate(used_of(source.train)))
    return Predicted(probability(margins(source.trace)), probability(margins(source.validation)))


def scoutgate(source: Source, progress: Progress | None = None) -> tuple[Predicted, ScoutGate, list[dict]]:
    """Predictions of a ScoutGate that is trained here, the gate, and the log of its training."""
    embedding = source.model.get_input_embeddings().weight.detach()
    gate, log = train_scoutgate(embedding, source.train, source.validation, progress=progress)
    predicted = Predicted(predict_scoutgate(gate, source.trace), predict_scoutgate(gate, source.validation))
    return predicted, gate, log


def fused(one: Predicted, other: Predicted, used_validation: np.ndarray) -> tuple[Predicted, float]:
    """Both, weighted by the share of `other` that fits the validation requests best, and that share."""
    eta = fit_eta(one.validation, other.validation, used_validation)
    return Predicted(fuse(one.trace, other.trace, eta), fuse(one.validation, other.validation, eta)), eta


def check_predictors(name: str, beside: str) -> None:
    """UserError for an unknown predictor of a model, and for an unknown one beside it."""
    if name not in NAMES:
        raise unknown_name("predictor of a model", name, NAMES)
    PREDICTORS.parse(beside)


def record_predictions(
    name: str, source: Source, beside: str, progress: Progress | None = None
) -> PredictionsMade:
    """The predictions of `name` for a source's trace.

    The fact `eta` is the share that fits the validation requests best when they are fused with the predictor
    `beside`. UserError for an unknown name, and for a trace of another model or without token ids.
    """
    check_predictors(name, beside)
    _check_model(source)
    used = np.concatenate(used_of(source.validation))
    facts: dict[str, Any] = {}
    gate = early = late = None
    if name != GATE_AHEAD:
        early, gate, facts["log"] = scoutgate(source, progress)
    if name != SCOUTGATE:
        late = gate_ahead(source)
    if early and late:
        late, facts["eta_scoutgate"] = fused(late, early, used)
    predicted = late or early
    assert predicted is not None
    prior = predictions(beside, source.train, used_of(source.validation))
    facts |= {"beside": beside, "eta": fit_eta(prior, predicted.validation, used)}
    share_LE = np.concatenate(used_of(source.train)).mean(axis=0).astype(np.float32)
    recorded = RecordedPredictions(
        prior=share_LE,
        early=_in_order(early.trace, source.trace) if early else None,
        late=_in_order(late.trace, source.trace) if late else None,
        trace_digest=digest_of(source.trace),
        predictor=name,
    )
    return PredictionsMade(recorded, gate, facts)


def _check_model(source: Source) -> None:
    layers = find_moe_layers(source.model)
    has = len(layers), layers[0].num_experts
    vocabulary = source.model.get_input_embeddings().weight.shape[0]
    for trace in (source.train, source.trace):
        if (trace.layers, trace.num_experts) != has:
            raise UserError(
                f"a trace of {trace.layers} layers x {trace.num_experts} experts is not of this model, which "
                f"has {has[0]} x {has[1]}"
            )
        if trace.token_ids is None:
            raise UserError("predicting from a model needs traces with token_ids")
        if not 0 <= trace.token_ids.min() <= trace.token_ids.max() < vocabulary:
            raise UserError(f"a trace has token ids outside of the model's vocabulary of {vocabulary}")
    for trace in (source.train, source.trace):
        if (share := _share_chosen(source.model, trace)) < SAME_MODEL:
            warn_once(
                f"warning: of the experts in '{trace.model or 'the trace'}' this model chooses only "
                f"{share:.0%} itself: the trace is of other weights, of an adapter or of re-routing, and the "
                "predictions are of this model"
            )


def _share_chosen(model: Any, trace: RoutingTrace) -> float:
    """Share of a trace's experts that the model chooses too, over the first request."""
    rows = np.flatnonzero(trace.request == trace.request[0])
    assert trace.token_ids is not None
    ids_1T = torch.from_numpy(trace.token_ids[rows].astype(np.int64))[None]
    chosen: list[np.ndarray] = []
    seen = [lambda output: chosen.append(output.indices_TK.cpu().numpy())]
    with torch.inference_mode(), RouterTap(model, find_moe_layers(model), seen):
        model(input_ids=ids_1T.to(model.device), use_cache=False)
    recorded = trace.experts[rows]
    both = (recorded[..., None] == np.stack(chosen, axis=1)[..., None, :]).any(axis=-1)
    return float(both.sum() / max(1, (recorded != EMPTY).sum()))


def _in_order(predicted_TLE: np.ndarray, trace: RoutingTrace) -> np.ndarray:
    """float32: from the order of `used_of`, request after request, to that of the trace's decoded rows."""
    requests = trace.request[trace.phase == DECODE].tolist()
    rank = {request: i for i, request in enumerate(dict.fromkeys(requests))}
    grouped = np.argsort([rank[request] for request in requests], kind="stable")
    ordered = np.empty(predicted_TLE.shape, np.float32)
    ordered[grouped] = predicted_TLE
    return ordered
