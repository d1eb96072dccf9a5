"""LocalityLoss: an objective of locality, computed on the routing of a forward pass, for any training loop.

    with LocalityLoss(model, "cache_miss:budget=25%", weight=0.5) as locality:
        loss = model(**batch).loss + locality(batch)

Letters: L layers, B rows, T tokens a row, E experts, K chosen experts a token.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.by_layer import Rank
from dwellmoe.locality.objectives import is_by_rank, load_objective
from dwellmoe.locality.pairs import mean_over_pairs, pair_mask, segments_of
from dwellmoe.log import warn_once
from dwellmoe.routing import RouterOutput, RouterTap
from dwellmoe.routing.router_scores import ScoreRule, choice_rules
from dwellmoe.routing.router_tap import Observer, Strategy


class Gates(NamedTuple):
    """What the routers gave in one forward pass of a [B, T] batch: a tensor a layer, none of them a copy."""

    logits: tuple[Tensor, ...]
    """Raw gate logits [B, T, E], with their gradient."""
    chosen: tuple[Tensor, ...]
    """The experts that ran [B, T, K], in router order; -1: a slot that was left empty."""


class GateRecorder:
    """An observer for `RouterTap` that keeps the last forward pass, with its gradient."""

    def __init__(self) -> None:
        self._outputs: dict[int, RouterOutput] = {}

    def __call__(self, output: RouterOutput) -> None:
        if output.layer.index in self._outputs:  # the next forward pass begins
            self._outputs.clear()
        self._outputs[output.layer.index] = output

    def clear(self) -> None:
        """Lets go of the forward pass."""
        self._outputs.clear()

    def gates(self, shape: Sequence[int], layers: set[int] | None = None) -> Gates:
        """The last forward pass, of the MoE layers with these indices or of all.

        UserError if there was none since `clear`, or one that was not of this shape [B, T].
        """
        outputs = [output for index, output in self._outputs.items() if layers is None or index in layers]
        if not outputs:
            raise UserError(
                "the locality loss needs a forward pass of the model inside its `with` block, and since "
                "the last call there was none"
            )
        tokens = len(outputs[0].logits_TE)
        if tokens != shape[0] * shape[1]:
            raise UserError(
                f"the locality loss was called with a batch of {shape[0]} x {shape[1]} tokens, but the last "
                f"forward pass ran {tokens} tokens"
            )
        return Gates(
            tuple(output.logits_TE.unflatten(0, tuple(shape)) for output in outputs),
            tuple(output.indices_TK.unflatten(0, tuple(shape)) for output in outputs),
        )


class LocalityLoss:
    """A `with` block in which `locality(batch)`, called after the model's forward pass on that batch, gives
    `weight * objective` of that pass: a scalar with a gradient, a mean over pairs and layers.

    objective   a name or `name:option=value,...` (see dwellmoe.locality.objectives)
    layers      numbers of the decoder layers whose pairs count; None: all MoE layers
    on_prompt   count pairs of prompt tokens too; False: only pairs whose labels are not ignored (-100)

    `segments_of` finds which tokens of the batch are consecutive. `weight` may be set anew at any time. The
    block leaves no hook behind. UserError (a ValueError) for an unknown objective or layer, and for a call
    without a forward pass or with a batch of another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: str = "cache_miss",
        weight: float = 1.0,
        *,
        layers: Iterable[int] | None = None,
        on_prompt: bool = True,
    ):
        self.weight = weight
        self.on_prompt = on_prompt
        self.moe_layers = find_moe_layers(model)
        load_objective(objective)  # a mistake in it is found before the routers are run
        self._layers = None if layers is None else self._indices(layers)
        ranks = self._ranks(model, objective) if is_by_rank(objective) else None
        self._objective = load_objective(objective, ranks)
        self._recorder = GateRecorder()
        self._tap = RouterTap(model, self.moe_layers, [self._recorder])
        self._last: tuple[tuple[Tensor, ...], Tensor] | None = None

    def _ranks(self, model: nn.Module, objective: str) -> list[Rank]:
        """What each router that counts ranks its experts by."""
        counted = [layer for layer in self.moe_layers if self._layers is None or layer.index in self._layers]
        rules = choice_rules(model, counted)
        if unknown := [layer.router for layer, rule in zip(counted, rules, strict=True) if rule is None]:
            warn_once(f"{objective} goes by logits: how router '{unknown[0]}' ranks its experts is unknown")
        return [partial(_ranked, rule) for rule in rules]

    def _indices(self, layers: Iterable[int]) -> set[int]:
        index_of = {layer.layer_id: layer.index for layer in self.moe_layers}
        if wrong := sorted({*layers} - {*index_of}):
            raise UserError(
                f"layers: {wrong[0]} is no MoE layer of this model: choose from {sorted(index_of)}"
            )
        return {index_of[layer] for layer in layers}

    def __enter__(self) -> "LocalityLoss":
        self._tap.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._tap.__exit__(*exception)

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        segments_BT = segments_of(batch)
        return self.weight * self.term(self.gates(segments_BT), segments_BT, batch.get("labels"))

    @property
    def ecr(self) -> float:
        """Expert consistency rate of the last batch: the share of a token's experts that the token before it
        chose too, averaged over `layers` and all pairs of a request, those of the prompt included.
        """
        if self._last is None:
            raise UserError("the ECR is known once the locality loss was called")
        chosen, segments_BT = self._last
        shared_LBP = torch.stack([_shared(chosen_BTK) for chosen_BTK in chosen])
        return mean_over_pairs(shared_LBP, pair_mask(segments_BT, None, include_prompt=True)).item()

    def watch(self, observers: Sequence[Observer], strategy: Strategy | None = None) -> "LocalityLoss":
        """Has observers see router outputs in the next `with` block, and a strategy replace the choice."""
        self._tap.observers = [self._recorder, *observers]
        self._tap.strategy = strategy
        return self

    def gates(self, segments_BT: Tensor) -> Gates:
        """What the routers of `layers` gave in the last forward pass, of which nothing is kept here."""
        gates = self._recorder.gates(segments_BT.shape, self._layers)
        self._recorder.clear()
        return gates

    def term(self, gates: Gates, segments_BT: Tensor, labels_BT: Tensor | None) -> Tensor:
        """The objective itself, unweighted."""
        device = gates.logits[0].device
        self._last = gates.chosen, segments_BT.to(device)
        mask_BP = pair_mask(segments_BT, labels_BT, self.on_prompt)
        return self._objective(gates.logits, gates.chosen, mask_BP.to(device))


def _ranked(rule: ScoreRule | None, logits_BTE: Tensor) -> Tensor:
    return logits_BTE.float() if rule is None or rule.ranks_by_logits else rule.rank(logits_BTE)


def _shared(chosen_BTK: Tensor) -> Tensor:
    """[B, P]: the share of the second token's experts that the first chose too."""
    before, after = chosen_BTK[..., :-1, :, None], chosen_BTK[..., 1:, None, :]
    return ((before == after) & (before >= 0)).any(-1).float().mean(-1)
