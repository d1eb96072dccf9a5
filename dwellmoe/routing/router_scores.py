"""How a router's choice and weights come from its logits: found by probing the router itself.

Letters: T tokens, E experts, K chosen experts a token, D hidden size, G groups of experts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.families.registry import config_of
from dwellmoe.routing.router_tap import RouterOutput, RouterTap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TE: logits_TE.softmax(-1),
    "sigmoid": lambda logits_TE: logits_TE.sigmoid(),
    "sqrt_softplus": lambda logits_TE: softplus(logits_TE).sqrt(),
}
PROBE_TOKENS = 1024
"""Tokens that each router is run on to find its rule: enough for a small bias to change a choice."""
MODEL_TOKENS = 64
"""The same, where the whole model has to run."""


@dataclass(frozen=True)
class Groups:
    """Only experts of the `kept` best of `count` groups may be chosen.

    A group's worth is the sum of its `best` largest ranks.
    """

    count: int
    kept: int
    best: int
    outside: float = -torch.inf
    """Rank of the experts of the other groups; 0 (A.X-K2) lets them in before an expert of negative rank."""


@dataclass(frozen=True)
class ScoreRule:
    """How one router goes from logits to weights: scores, the K largest of score + bias, normalisation.

    Softmax families choose by the logits themselves, which have the same order as their probabilities.
    """

    activation: str
    renormalised: bool
    """Whether the weights of the chosen experts are scaled to a fixed sum."""
    bias_E: Tensor | None = None
    groups: Groups | None = None
    bias_on_logits: bool = False
    """Whether the bias is added to the logits and not to the scores (Kolibri)."""

    def scores(self, logits_TE: Tensor) -> Tensor:
        """Original scores of all experts, `[T, E]` float32: weights up to one factor a token."""
        return ACTIVATIONS[self.activation](logits_TE.float())

    def rank(self, logits_TE: Tensor) -> Tensor:
        """What the router ranks its experts by, `[T, E]` float32; -inf where it may not choose."""
        if self.bias_on_logits or (self.activation == "softmax" and self.bias_E is None):
            ranked_TE = logits_TE.float()
        else:
            ranked_TE = self.scores(logits_TE)
        if self.bias_E is not None:
            ranked_TE = ranked_TE + self.bias_E.to(ranked_TE)
        return _within_groups(ranked_TE, self.groups) if self.groups else ranked_TE

    @property
    def ranks_by_logits(self) -> bool:
        """Whether the K largest logits are the choice."""
        return self.bias_E is None and self.groups is None

    def weights(self, output: RouterOutput, indices_TK: Tensor, renormalise: bool = True) -> Tensor:
        """Routing weights of another choice (-1: empty slot, weight 0) in place of the router's own.

        They are the original scores, scaled to the sum of the router's own weights if it renormalises (unless
        `renormalise` is False), else by the router's own factor from score to weight.
        """
        scores_TE = self.scores(output.logits_TE)
        kept_TK = indices_TK >= 0
        chosen_TK = scores_TE.gather(-1, indices_TK.clamp_min(0)) * kept_TK
        renormalised = self.renormalised and renormalise
        against_TK = chosen_TK if renormalised else scores_TE.gather(-1, output.indices_TK)
        return _scaled(chosen_TK, output, against_TK).to(output.weights_TK.dtype)

    def weights_beside_own(self, output: RouterOutput) -> Tensor:
        """The weight of every expert by the router's own factor from score to weight, `[T, E]` float32."""
        scores_TE = self.scores(output.logits_TE)
        return _scaled(scores_TE, output, scores_TE.gather(-1, output.indices_TK))

    def explains(self, output: RouterOutput) -> bool:
        """Whether the router's own output agrees with this rule."""
        return self.explains_choice(output) and self._explains_weights(output)

    def explains_choice(self, output: RouterOutput) -> bool:
        """Whether the experts that the router chose are those that this rule ranks highest."""
        rank_TE = self.rank(output.logits_TE)
        chosen_T = rank_TE.gather(-1, output.indices_TK).min(-1).values
        others_T = rank_TE.scatter(-1, output.indices_TK, -torch.inf).max(-1).values
        return bool((chosen_T >= others_T - 1e-5 * rank_TE.abs().nan_to_num(0, 0, 0).max()).all())

    def _explains_weights(self, output: RouterOutput) -> bool:
        weights_TK, tolerance = output.weights_TK.float(), _tolerance(output.weights_TK.dtype)
        scores_TK = self.scores(output.logits_TE).gather(-1, output.indices_TK)
        against_TK = scores_TK / scores_TK.sum(-1, keepdim=True) if self.renormalised else scores_TK
        factor = weights_TK.sum() / against_TK.sum()
        return torch.allclose(weights_TK, factor * against_TK, rtol=tolerance, atol=tolerance * 1e-2)


def _scaled(scores: Tensor, output: RouterOutput, against_TK: Tensor) -> Tensor:
    """Scores times the factor by which `against_TK` would add up to the router's own weights."""
    own_T1 = output.weights_TK.float().sum(-1, keepdim=True)
    return scores * own_T1 / against_TK.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _tolerance(dtype: torch.dtype) -> float:
    return max(8 * torch.finfo(dtype).eps, 1e-4)


def _within_groups(ranked_TE: Tensor, groups: Groups) -> Tensor:
    ranked_TGN = ranked_TE.unflatten(-1, (groups.count, -1))
    worth_TG = ranked_TGN.topk(groups.best, dim=-1).values.sum(-1)
    kept_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    kept_TG.scatter_(-1, worth_TG.topk(groups.kept, dim=-1).indices, True)
    return ranked_TGN.masked_fill(~kept_TG[..., None], groups.outside).flatten(-2)


def score_rules(model: nn.Module, moe_layers: Sequence[MoeLayer]) -> list[ScoreRule]:
    """The rule of each layer's router: the first that explains the router's output on random hidden states.

    No expert runs, unless a router takes more than hidden states. UserError where no rule explains a router.
    """
    outputs = _probed(model, moe_layers)
    return [_rule_of(model, layer, outputs[layer.index]) for layer in moe_layers]


def choice_rules(model: nn.Module, moe_layers: Sequence[MoeLayer]) -> list[ScoreRule | None]:
    """How each layer's router ranks its experts.

    None where no rule explains its choice, and where it cannot be run (sharded by ZeRO-3, and of more inputs
    than hidden states). Of the rules that explain the choice, one that also explains the weights is taken.
    """
    with _gathered(model, moe_layers):
        try:
            outputs = _probed(model, moe_layers)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            return [None for _ in moe_layers]
        return [_choice_rule(model, layer, outputs[layer.index]) for layer in moe_layers]


def _choice_rule(model: nn.Module, layer: MoeLayer, output: RouterOutput) -> ScoreRule | None:
    found = [rule for rule in _candidates(model, layer) if rule.explains_choice(output)]
    return next((rule for rule in found if rule.explains(output)), found[0] if found else None)


def _gathered(model: nn.Module, moe_layers: Sequence[MoeLayer]) -> AbstractContextManager:
    """The routers' weights in one piece, on every rank, where ZeRO-3 has sharded them."""
    routers = [model.get_submodule(layer.router) for layer in moe_layers]
    weights = [weight for router in routers for weight in router.parameters() if hasattr(weight, "ds_id")]
    if not weights:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters  # slow to import

    return GatheredParameters(weights)


def _rule_of(model: nn.Module, layer: MoeLayer, output: RouterOutput) -> ScoreRule:
    for rule in _candidates(model, layer):
        if rule.explains(output):
            return rule
    raise UserError(
        f"routing strategies: no rule explains how router '{layer.router}' makes weights from its logits: "
        f"tried {', '.join(ACTIVATIONS)}, raw and renormalised, with its biases and groups"
    )


def _candidates(model: nn.Module, layer: MoeLayer) -> Iterator[ScoreRule]:
    """All rules, simple ones first: those without groups and bias."""
    rules = product(
        (False, True), _groupings(model, layer), _biases(model, layer), ACTIVATIONS, (True, False)
    )
    for bias_on_logits, groups, bias_E, activation, renormalised in rules:
        if bias_E is not None or not bias_on_logits:
            yield ScoreRule(activation, renormalised, bias_E, groups, bias_on_logits)


def _biases(model: nn.Module, layer: MoeLayer) -> Iterator[Tensor | None]:
    yield None
    block = model.get_submodule(layer.block)
    for named in (block.named_buffers(), block.named_parameters()):
        for name, tensor in named:
            if "bias" in name and tensor.numel() == layer.num_experts and not name.startswith("experts."):
                yield tensor.detach().flatten()


def _groupings(model: nn.Module, layer: MoeLayer) -> Iterator[Groups | None]:
    yield None
    config = config_of(model)
    text = None if config is None else config.get_text_config()
    count, kept = getattr(text, "n_group", None), getattr(text, "topk_group", None)
    if count and kept and kept < count and layer.num_experts % count == 0:
        yield from (Groups(count, kept, best, outside) for outside in (-torch.inf, 0.0) for best in (2, 1))


def _probed(model: nn.Module, moe_layers: Sequence[MoeLayer]) -> dict[int, RouterOutput]:
    """Each router's output for random hidden states, by layer index."""
    seen: dict[int, RouterOutput] = {}
    with torch.no_grad(), RouterTap(model, moe_layers, [lambda output: _keep(seen, output)]):
        try:
            for layer in moe_layers:
                _run_router(model, layer)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            seen.clear()
            _run_model(model)
    return seen


def _keep(seen: dict[int, RouterOutput], output: RouterOutput) -> None:
    seen[output.layer.index] = output


def _run_router(model: nn.Module, layer: MoeLayer) -> None:
    router = model.get_submodule(layer.router)
    weight = next(router.parameters())
    config = config_of(model)
    assert config is not None, "a transformers model has a configuration"
    shape = PROBE_TOKENS, config.get_text_config().hidden_size
    hidden_TD = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    router(hidden_TD.to(weight.device, weight.dtype))


def _run_model(model: nn.Module) -> None:
    config, device = config_of(model), next(model.parameters()).device
    vocabulary = 2 if config is None else config.get_text_config().vocab_size
    tokens = torch.randint(0, vocabulary, (1, MODEL_TOKENS), generator=torch.Generator().manual_seed(0))
    model(tokens.to(device), use_cache=False)
