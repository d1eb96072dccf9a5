"""Puts a routing strategy's choice in the place of the router's, and keeps the history that it may look at.

Letters: T rows, E experts, K chosen experts a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.cache.trace import SIGNED_EMPTY
from dwellmoe.families import MoeLayer
from dwellmoe.routing.history import History
from dwellmoe.routing.router_scores import score_rules
from dwellmoe.routing.router_tap import RouterOutput
from dwellmoe.routing.strategies import load_strategy
from dwellmoe.routing.strategies.base import in_rows, keeps_weights


class Rows(NamedTuple):
    """A router's output as strategies read it, numpy, [T, E] and [T, K]."""

    rank_TE: np.ndarray
    score_TE: np.ndarray
    own_TK: np.ndarray

    def take(self, rows: slice | np.ndarray) -> "Rows":
        return Rows(self.rank_TE[rows], self.score_TE[rows], self.own_TK[rows])


class Rerouter:
    """A routing strategy at work on one model, with the history of each layer that it may look at.

    Calling it with `(output, resident_E)` does everything for rows that choose together. A caller that goes
    row by row through one forward pass (teacher forcing) takes the steps itself: `read`; then `prompt`, or
    `choose` and `use` for each row; then `replace`. Raises UserError for an unknown strategy, and for a
    router whose weights it cannot reproduce.
    """

    def __init__(self, model: nn.Module, moe_layers: Sequence[MoeLayer], spec: str):
        self.spec = spec
        self.strategy = load_strategy(spec)
        self._keeps_weights = keeps_weights(self.strategy)
        self._rules = dict(
            zip((layer.index for layer in moe_layers), score_rules(model, moe_layers), strict=True)
        )
        self._experts = {layer.index: layer.num_experts for layer in moe_layers}
        self.reset()

    def reset(self) -> None:
        """Forgets the past."""
        self._histories = {layer: History(experts) for layer, experts in self._experts.items()}

    def __call__(self, output: RouterOutput, resident_E: np.ndarray) -> tuple[Tensor, Tensor]:
        """`(weights_TK, indices_TK)` of rows that run together; -1 is an empty slot, of weight 0."""
        chosen_TK = self.choose(output.layer.index, self.read(output), resident_E)
        self.use(output.layer.index, chosen_TK)
        return self.replace(output, chosen_TK)

    def read(self, output: RouterOutput) -> Rows:
        """The router's output as strategies read it."""
        rule = self._rules[output.layer.index]
        rank_TE = rule.rank(output.logits_TE)
        score_TE = rule.weights_beside_own(output) if self._keeps_weights else rule.scores(output.logits_TE)
        order_TK = rank_TE.gather(-1, output.indices_TK).argsort(dim=-1, descending=True, stable=True)
        own_TK = output.indices_TK.gather(-1, order_TK)
        return Rows(*(part.detach().cpu().numpy() for part in (rank_TE, score_TE, own_TK)))

    def choose(
        self, layer: int, rows: Rows, resident_E: np.ndarray, importance_T: np.ndarray | None = None
    ) -> np.ndarray:
        """The choice of rows that choose together, int [T, K] in router order; -1: empty, at the end."""
        history = self._histories[layer]
        context = history.context(*rows, resident_E=resident_E, layer=layer, importance_T=importance_T)
        return _router_order(self.strategy.choose(context), rows.score_TE)

    def use(self, layer: int, chosen_TK: np.ndarray) -> None:
        """Adds to the layer's history one token step, in which these rows ran together."""
        self._histories[layer].add_uses(chosen_TK)

    def prompt(
        self,
        layer: int,
        rows: Rows,
        resident_E: np.ndarray | None = None,
        importance_T: np.ndarray | None = None,
    ) -> np.ndarray:
        """The choice of a prompt's tokens by what was resident before all of them, int [T, K].

        Without `resident_E` it is the router's own, in router order. Each token counts as one token step.
        """
        if resident_E is None:
            self._histories[layer].add_ranks(rows.rank_TE)
            chosen_TK = _router_order(rows.own_TK, rows.score_TE)
        else:
            chosen_TK = self.choose(layer, rows, resident_E, importance_T)
        for row_1K in chosen_TK[:, None]:
            self.use(layer, row_1K)
        return chosen_TK

    def replace(self, output: RouterOutput, chosen_TK: np.ndarray) -> tuple[Tensor, Tensor]:
        """`(weights_TK, indices_TK)`; a row whose set is the router's own keeps the router's output."""
        own_TK = output.indices_TK
        indices_TK = torch.from_numpy(np.ascontiguousarray(chosen_TK)).to(own_TK)
        rule = self._rules[output.layer.index]
        weights_TK = rule.weights(output, indices_TK, renormalise=not self._keeps_weights)
        same_T1 = (indices_TK.sort(-1).values == own_TK.sort(-1).values).all(-1, keepdim=True)
        return torch.where(same_T1, output.weights_TK, weights_TK), torch.where(same_T1, own_TK, indices_TK)


def _router_order(chosen_TK: np.ndarray, score_TE: np.ndarray) -> np.ndarray:
    score_TK = score_TE[in_rows(np.maximum(chosen_TK, 0))]
    order_TK = np.argsort(np.where(chosen_TK == SIGNED_EMPTY, np.inf, -score_TK), axis=1, kind="stable")
    return chosen_TK[in_rows(order_TK)]
