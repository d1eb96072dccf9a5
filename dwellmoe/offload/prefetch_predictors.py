"""Prefetch predictors: which experts the next layer will probably request.

Letters: T tokens, D hidden size, L layers, E experts a layer.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from inspect import signature
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.cache.predictors import make_predictor
from dwellmoe.families import MoeLayer, family_of
from dwellmoe.offload.check_settings import FUSED, GATE_AHEAD, SCOUTGATE, scout_options
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.live_predictors import FusedLive, LiveGateAhead, LiveScout
from dwellmoe.registry import name_of
from dwellmoe.routing.scoutgate import load_scoutgate


class PrefetchPredictor(Protocol):
    def predict_next(self, layer: int, hidden_TD: Tensor, requested: Sequence[int]) -> list[int]:
        """Experts that layer `layer` + 1 will probably request, likeliest first; none after the last layer.

        Called for every layer in order, with its hidden states and the distinct experts it requested.
        """
        ...


class NextGatePredictor:
    """The next layer's own gate on this layer's hidden states.

    routers    [L]: each layer's router module; called past its hooks, so that a router tap does not see it
    chosen_of  a router's output -> the experts that it chose, [T, K]
    recorded   for routers that take more than hidden states: they get what this layer's router was given
    """

    def __init__(
        self,
        routers: Sequence[Any],
        experts: int,
        chosen_of: Callable[[tuple], Tensor],
        recorded: "LastRouterInputs | None" = None,
    ) -> None:
        self.routers, self.experts, self.chosen_of, self.recorded = routers, experts, chosen_of, recorded

    def predict_next(self, layer: int, hidden_TD: Tensor, requested: Sequence[int]) -> list[int]:
        if layer + 1 == len(self.routers):
            return []
        inputs, named = self.recorded.last if self.recorded else ((hidden_TD,), {})
        with torch.no_grad():
            chosen_TK = self.chosen_of(self.routers[layer + 1].forward(*inputs, **named))
        return [expert for expert in dict.fromkeys(chosen_TK.flatten().tolist()) if expert < self.experts]


class LastRouterInputs:
    """What the router that ran last was called with: positional and named inputs."""

    def __init__(self, routers: Sequence[nn.Module], closing: ExitStack) -> None:
        self.last: tuple[tuple, dict[str, Any]] = (), {}
        for router in routers:
            handle = router.register_forward_pre_hook(self._keep, with_kwargs=True)
            closing.callback(handle.remove)

    def _keep(self, _router: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
        self.last = inputs, named


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

    def predict_next(self, layer: int, hidden_TD: Tensor, requested: Sequence[int]) -> list[int]:
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

    def predict_next(self, layer: int, hidden_TD: Tensor, requested: Sequence[int]) -> list[int]:
        predictor = self.gate if self.forward_pass.prefill else self.decode
        return predictor.predict_next(layer, hidden_TD, requested)


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
    gate = _next_gate(model, layers, forward_pass)
    if name_of(spec) == GATE_AHEAD:
        return gate
    found = make_live_predictor(spec, model, layers, forward_pass)
    return PerPhase(gate, NextLayerPredictor(found, len(layers), experts, forward_pass), forward_pass)


def _next_gate(model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> NextGatePredictor:
    routers = [model.get_submodule(layer.router) for layer in layers]
    hidden_alone = all(len(signature(router.forward).parameters) == 1 for router in routers)
    read, top_k = family_of(model).read, layers[0].top_k
    return NextGatePredictor(
        routers=routers,
        experts=layers[0].num_experts,
        chosen_of=lambda output: read(output, top_k)[2],
        recorded=None if hidden_alone else LastRouterInputs(routers, forward_pass.closing),
    )


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
