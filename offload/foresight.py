"""Knows who foresees which experts the next layer will ask for; reads none of them.

A foresight has `look(layer, hidden_TD, asked) -> list[int]`: once `layer` has asked for the distinct experts
`asked`, those that layer `layer` + 1 will probably ask for, likeliest first; none behind the last layer. It
is called for every layer in order. Letters: T tokens, D hidden size, L layers, E experts.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from errors import UserError, unknown_name
from expert_cache.predictors import make_predictor, predictor_names
from models import MoeLayer
from offload.passes import ForwardPass
from routing.scoutgate import LastTokens, ScoutGate, load_scoutgate
from specs import name_of, options_of

GATE_AHEAD, SCOUTGATE, RECORDED = "gate_ahead", "scoutgate", "recorded"
AHEAD_NAMES = sorted({SCOUTGATE, *predictor_names()} - {RECORDED})  # that is of a trace, not live
NAMES = sorted({GATE_AHEAD, *AHEAD_NAMES})


class Foresight(Protocol):
    def look(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> list[int]: ...


class GateForesight:
    """The next layer's own gate on this layer's hidden states.

    routers  [L]: each layer's router module. It is called past its hooks: the router tap must not see it.
    """

    def __init__(self, routers: Sequence[Any], experts: int) -> None:
        self.routers, self.experts = routers, experts

    def look(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> list[int]:
        if layer + 1 == len(self.routers):
            return []
        with torch.no_grad():
            output = self.routers[layer + 1].forward(hidden_TD)
        return [expert for expert in dict.fromkeys(output[2].flatten().tolist()) if expert < self.experts]


class CountedForesight:
    """A predictor of `expert_cache/predictors/`, which learns while the model decodes."""

    def __init__(self, predictor: Any, layers: int, experts: int, forward_pass: ForwardPass) -> None:
        self.predictor, self.layers, self.experts = predictor, layers, experts
        forward_pass.listeners.append(self._pass_begins)

    def _pass_begins(self, forward_pass: ForwardPass) -> None:
        if forward_pass.fresh:
            self.predictor.start()

    def look(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> list[int]:
        used_E = np.zeros(self.experts, np.bool_)
        used_E[list(asked)] = True
        self.predictor.watch(layer, used_E)
        return [] if layer + 1 == self.layers else likeliest(self.predictor.predict(layer + 1), len(asked))


class LiveScout:
    """ScoutGate on the token ids of the decode pass under way, all layers at once when it begins; of rows
    that run together, that any of them uses an expert. A predictor as those of `expert_cache/predictors/`,
    which has nothing to say of prompts (`reach` 0) and learns nothing.
    """

    def __init__(self, gate: ScoutGate, forward_pass: ForwardPass) -> None:
        self.gate, self.tokens = gate, LastTokens()
        self.said_LE: np.ndarray | None = None
        forward_pass.listeners.append(self._pass_begins)

    def _pass_begins(self, forward_pass: ForwardPass) -> None:
        windows_RW = self.tokens.add(forward_pass.ids_BT, forward_pass.fresh)
        self.said_LE = None
        if windows_RW is not None and not forward_pass.prefill:
            with torch.inference_mode():
                p_RLE = self.gate(windows_RW.to(self.gate.bias.device)).sigmoid().double()
                self.said_LE = (1 - (1 - p_RLE).prod(dim=0)).cpu().numpy()

    @property
    def reach(self) -> int:
        return 0 if self.said_LE is None else len(self.said_LE)

    def predict(self, layer: int) -> np.ndarray:
        assert self.said_LE is not None
        return self.said_LE[layer]

    def watch(self, layer: int, used_E: np.ndarray) -> None: ...


class ScoutForesight:
    """ScoutGate, of the next layer."""

    def __init__(self, scout: LiveScout) -> None:
        self.scout = scout

    def look(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> list[int]:
        if layer + 1 >= self.scout.reach:
            return []
        return likeliest(self.scout.predict(layer + 1), len(asked))


class ByPhase:
    """Prompts are foreseen by the gate, which is not asked about a token at a time; decoding by `decode`."""

    def __init__(self, gate: GateForesight, decode: Foresight, forward_pass: ForwardPass) -> None:
        self.gate, self.decode, self.forward_pass = gate, decode, forward_pass

    def look(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> list[int]:
        return (self.gate if self.forward_pass.prefill else self.decode).look(layer, hidden_TD, asked)


def likeliest(p_E: np.ndarray, count: int) -> list[int]:
    """The `count` most probable, best first; nobody of probability 0."""
    order = np.argsort(-p_E, kind="stable")[:count]
    return order[p_E[order] > 0].tolist()


def check_foresight(spec: str, option: str = "prefetch_predictor") -> None:
    """Everything about a spec that needs no model. Raises UserError."""
    names = NAMES if option == "prefetch_predictor" else AHEAD_NAMES
    if name_of(spec) not in names:
        raise unknown_name(option.replace("_", " "), name_of(spec), names)
    if name_of(spec) == GATE_AHEAD:
        options_of(GATE_AHEAD, spec, lambda: None)
    elif name_of(spec) == SCOUTGATE and not _scoutgate_file(spec):
        raise UserError(f"--{option} scoutgate: give its weights, scoutgate:weights=FILE")


def make_foresight(spec: str, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> Foresight:
    """The foresight of `name:option=value,...`. UserError for an unknown one and for foreign weights."""
    experts = layers[0].num_experts
    gate = GateForesight([model.get_submodule(layer.router) for layer in layers], experts)
    if name_of(spec) == GATE_AHEAD:
        return gate
    found = make_live_predictor(spec, model, layers, forward_pass)
    if isinstance(found, LiveScout):
        return ByPhase(gate, ScoutForesight(found), forward_pass)
    return ByPhase(gate, CountedForesight(found, len(layers), experts, forward_pass), forward_pass)


def make_live_predictor(spec: str, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> Any:
    """A predictor of use of `name:option=value,...`, told of each pass. UserErrors as `make_foresight`'s."""
    experts = layers[0].num_experts
    if name_of(spec) != SCOUTGATE:
        return make_predictor(spec, len(layers), experts)
    embedding = model.get_input_embeddings().weight.detach()
    gate = load_scoutgate(_scoutgate_file(spec), embedding, len(layers), experts)
    return LiveScout(gate, forward_pass)


def _scoutgate_file(spec: str) -> str:
    def takes(*, weights: str = "") -> None: ...

    return str(options_of(SCOUTGATE, spec, takes).get("weights", ""))
