"""Knows how a layer's experts are computed out of the cache: the one seam between transformers and ours.

transformers calls `cached_experts_forward` in place of its own implementation, with the router's choice. The
caches decide (`LiveCache`), a `Request` brings and computes. Letters: B rows, T tokens of all rows, K chosen
experts a token, D hidden size, E routed experts a layer.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dwellmoe.cache.tiers.live import LiveCache, TransferPlan
from dwellmoe.errors import UserError
from dwellmoe.offload.compute import ManyTokens, OneToken
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.live_trace import LiveTrace
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.serving import Request
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.statistics import DECODE, PREFILL, Statistics
from dwellmoe.routing import router_order

NAME = "expert_cache"
HANDLE = "expert_cache_layer"
"""Attribute of an experts module: (engine, number of the MoE layer)."""


def cached_experts_forward(module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The experts implementation that is registered with transformers; inference only."""
    engine, layer = getattr(module, HANDLE)
    with torch.no_grad():
        return engine.run_layer(layer, module, hidden_TD, indices_TK, weights_TK)


ALL_EXPERTS_FUNCTIONS.register(NAME, cached_experts_forward)


class CachedExperts:
    """All MoE layers of one model, computed out of one `LiveCache`.

    stock  the implementation of transformers that runs where all experts of a layer lie in a row
    """

    def __init__(
        self,
        live: LiveCache,
        residents: SlotTable,
        readers: Readers,
        prefetch: Prefetch | None,
        forward_pass: ForwardPass,
        statistics: Statistics,
        stock: str,
    ) -> None:
        self.live, self.residents, self.readers, self.prefetch = live, residents, readers, prefetch
        self.forward_pass, self.statistics = forward_pass, statistics
        self.recorder: LiveTrace | None = None
        self._stock = ALL_EXPERTS_FUNCTIONS.get(stock, None)
        self._broken = False

    def run_layer(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        """The sum of each token's experts, [T, D]. Raises UserError for a router's output that is no choice,
        ReadFault where weights cannot be read; the caches are as if the request had not been, then, less what
        had to make room for it.
        """
        if self._broken:
            self.repair()
        self._broken = True
        try:
            out_TD = self._run(layer, module, hidden_TD, indices_TK, weights_TK)
        except BaseException:
            self.repair()
            raise
        self._broken = False
        return out_TD

    def repair(self) -> None:
        """Makes books and slots agree again after anything broke off (a fault, Ctrl-C)."""
        self.residents.reconcile()
        if self.prefetch:
            self.prefetch.forget()
        self._broken = False

    def _run(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        if self.forward_pass.prefill:
            return self._run_chunk(layer, module, hidden_TD, indices_TK, weights_TK)
        if len(indices_TK) == 1:
            return self._run_token(layer, module, hidden_TD, indices_TK, weights_TK)
        rows = max(1, self.live.split.cache.capacity // indices_TK.shape[1])
        if rows >= len(indices_TK):
            return self._run_rows(layer, module, 0, hidden_TD, indices_TK, weights_TK)
        cuts = zip(*(part.split(rows) for part in (hidden_TD, indices_TK, weights_TK)), strict=True)
        return torch.cat([self._run_rows(layer, module, n * rows, *cut) for n, cut in enumerate(cuts)])

    def _run_token(self, layer: int, module: Any, hidden_1D: Tensor, indices_1K: Tensor, weights_1K: Tensor):
        experts, shares = indices_1K.flatten().tolist(), weights_1K.flatten().tolist()
        _check_finite(layer, sum(shares))
        if shares != sorted(shares, reverse=True):
            weights_1K, indices_1K = router_order(weights_1K, indices_1K)
            experts = indices_1K.flatten().tolist()
        if max(experts) >= self.live.experts:
            return self._run_rows(layer, module, 0, hidden_1D, indices_1K, weights_1K)
        self._record(layer, [experts], 0)
        orders = self.live.decode(layer, experts)
        work = OneToken(module, hidden_1D, experts, weights_1K)
        here = None if orders.loads else self.residents.all_here(layer, experts)
        if here is None:
            self._serve(layer, hidden_1D, experts, orders, work)
            return work.result()
        self.statistics.phases[DECODE].device_hits += len(experts)
        if self.prefetch:
            self.prefetch.turn_to(layer, hidden_1D, experts)
        for expert, weights in zip(experts, here, strict=True):
            work.add(expert, weights)
        return work.result()

    def _run_rows(
        self, layer: int, module: Any, begin: int, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor
    ):
        """Rows of a batch that ask together."""
        chosen_TK = self._chosen(layer, indices_TK, weights_TK)
        self._record(layer, chosen_TK, begin)
        asked = chosen_TK[chosen_TK < self.live.experts].tolist()
        if not asked:
            return torch.zeros_like(hidden_TD)
        orders = self.live.decode(layer, asked)
        work = ManyTokens(module, hidden_TD, indices_TK, weights_TK, self.live.experts)
        self._serve(layer, hidden_TD, list(dict.fromkeys(asked)), orders, work)
        return work.result()

    def _run_chunk(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        chosen_TK = self._chosen(layer, indices_TK, weights_TK)
        self._record(layer, chosen_TK, 0)
        orders = self.live.prefill(layer, chosen_TK)
        asked = list(dict.fromkeys(chosen_TK[chosen_TK < self.live.experts].tolist()))
        if not orders.loads and self._side_by_side(layer):
            self.statistics.phases[PREFILL].device_hits += len(asked)
            assert self._stock is not None
            return self._stock(module, hidden_TD, indices_TK, weights_TK)
        work = ManyTokens(module, hidden_TD, indices_TK, weights_TK, self.live.experts)
        self._serve(layer, hidden_TD, asked, orders, work)
        return work.result()

    def _side_by_side(self, layer: int) -> bool:
        return self.residents.at_home and self._stock is not None

    def _serve(
        self, layer: int, hidden_TD: Tensor, experts: Sequence[int], orders: TransferPlan, work: Any
    ) -> None:
        first = layer * self.live.experts
        counts = self.statistics.phases[PREFILL if self.forward_pass.prefill else DECODE]
        numbers = [first + expert for expert in experts]
        request = Request(self.residents, self.readers, self.prefetch, numbers, orders, work, counts)
        request.begin()
        if self.prefetch:
            self.prefetch.turn_to(layer, hidden_TD, experts)
        request.finish()

    def _chosen(self, layer: int, indices_TK: Tensor, weights_TK: Tensor) -> np.ndarray:
        """The router's choice in its order, [T, K], on the host."""
        _check_finite(layer, float(weights_TK.sum()))
        _, ordered_TK = router_order(weights_TK, indices_TK)
        return ordered_TK.cpu().numpy()

    def _record(self, layer: int, chosen_TK: Any, begin: int) -> None:
        if self.recorder is not None:
            requests = self.forward_pass.requests[begin : begin + len(chosen_TK)]
            self.recorder.add(layer, np.asarray(chosen_TK), requests, self.forward_pass.prefill, begin)


def _check_finite(layer: int, total: float) -> None:
    if not isfinite(total):
        raise UserError(
            f"the router of MoE layer {layer} gives weights that are no numbers (NaN or infinite)"
        )
