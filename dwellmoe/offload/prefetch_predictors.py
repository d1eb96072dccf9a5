"""Prefetch predictors: which experts the next layer will probably request.

Letters: L layers, E experts a layer.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from torch import nn

from dwellmoe.cache.predictors import make_predictor
from dwellmoe.families import MoeLayer
from dwellmoe.offload.check_settings import FUSED, GATE_AHEAD, SCOUTGATE, scout_options
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.live_predictors import FusedLive, LiveGateAhead, LiveScout
from dwellmoe.registry import name_of
from dwellmoe.routing.next_router import NextRouter
from dwellmoe.routing.scoutgate import load_scoutgate


class PrefetchPredictor(Protocol):
    def predict_next(self, layer: int, requested: Sequence[int]) -> list[int]:
        """Experts that layer `layer` + 1 will probably request, likeliest first; none after the last layer.

        Called for every layer in order, with the distinct experts that it requested.
        """
        ...


class NextGatePredictor:
    """The next layer's own gate on what this layer's gate was given, which hooks on the routers keep."""

    def __init__(self, model: nn.Module, layers: Sequence[MoeLayer], closing: ExitStack) -> None:
        self._next = [NextRouter(model, *pair) for pair in pairwise(layers)]
        self._experts = layers[0].num_experts
        self._last: tuple[tuple, dict[str, Any]] = (), {}
        for layer in layers[:-1]:
            router = model.get_submodule(layer.router)
            closing.callback(router.register_forward_pre_hook(self._keep, with_kwargs=True).remove)

    def __deepcopy__(self, memo: dict) -> "NextGatePredictor":
        """Itself: PEFT copies a gate that an adapter trains in full, with its hooks."""
        return self

    def _keep(self, _router: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        self._last = inputs, named

    def predict_next(self, layer: int, requested: Sequence[int]) -> list[int]:
        answer = self._next[layer](*self._last) if layer < len(self._next) else None
        if answer is None:
            return []
        return [expert for expert in dict.fromkeys(answer[2].flatten().tolist()) if expert < self._experts]


class NextLayerPredictor:
    """The next layer's likeliest experts, as many as this layer requested, by a predictor of
    cache/predictors/ or live_predictors.py.
    """

    def __init__(self, predictor: Any, layers: int, experts: int, forward_pass: ForwardPass) -> None:
        self.predictor, self.layers, self.experts = predictor, layers, experts
        forward_pass.listeners.append(self._pass_begins)

    def _pass_begins(self, forward_pass: ForwardPass) -> None:
        if forward_pass.fresh:
            self.predictor.start()

    def predict_next(self, layer: int, requested: Sequence[int]) -> list[int]:
        used_E = np.zeros(self.experts, np.bool_)
        used_E[list(requested)] = True
        self.predictor.watch(layer, used_E)
        if layer + 1 == self.layers:
            return []
        return likeliest(self.predictor.predict(layer + 1), len(requested))


class PerPhase:
    """The gate predicts prefill, `decode` predicts decoding."""

    def __init__(self, gate: NextGatePredictor, decode: PrefetchPredictor, forward_pass: ForwardPass) -> None:
        self.gate, self.decode, self.forward_pass = gate, decode, forward_pass

    def predict_next(self, layer: int, requested: Sequence[int]) -> list[int]:
        predictor = self.gate if self.forward_pass.prefill else self.decode
        return predictor.predict_next(layer, requested)


def likeliest(p_E: np.ndarray, count: int) -> list[int]:
    """The `count` most probable experts, best first, without those of probability 0."""
    order = np.argsort(-p_E, kind="stable")[:count]
    return order[p_E[order] > 0].tolist()


def make_prefetch_predictor(
    spec: str, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass
) -> PrefetchPredictor:
    """The predictor of `name:option=value,...`. Raises UserError for an unknown one and for ScoutGate's
    weights of another model.
    """
    experts = layers[0].num_experts
    gate = NextGatePredictor(model, layers, forward_pass.closing)
    if name_of(spec) == GATE_AHEAD:
        return gate
    found = make_live_predictor(spec, model, layers, forward_pass)
    return PerPhase(gate, NextLayerPredictor(found, len(layers), experts, forward_pass), forward_pass)


def make_live_predictor(spec: str, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> Any:
    """A predictor of expert use that follows the model's forward passes, from `name:option=value,...`. Raises
    UserError as `make_prefetch_predictor` does.
    """
    experts, name = layers[0].num_experts, name_of(spec)
    if name == GATE_AHEAD:
        return LiveGateAhead(model, layers, forward_pass)
    if name not in (SCOUTGATE, FUSED):
        return make_predictor(spec, len(layers), experts)
    weights, share = scout_options(spec)
    embedding = model.get_input_embeddings().weight.detach()
    scout = LiveScout(load_scoutgate(weights, embedding, len(layers), experts), forward_pass)
    return scout if name == SCOUTGATE else FusedLive(LiveGateAhead(model, layers, forward_pass), scout, share)
