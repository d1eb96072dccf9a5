"""Computes the experts of a layer out of the caches: one token, the rows of a batch, or a chunk of a prompt.

The caches decide what moves (`LiveCache`); a `LayerRequest` moves it and computes. Letters: T tokens of all
rows, K chosen experts a token, D hidden size, E routed experts a layer.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError
from dwellmoe.experts.implementation import per_expert_forward
from dwellmoe.experts.peft_factors import carried
from dwellmoe.offload.compute import ManyTokens, OneToken, has_pass
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.layer_request import LayerRequest
from dwellmoe.offload.live_trace import LiveTrace
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.statistics import Statistics
from dwellmoe.routing import router_order

ALL_PRESENT = "grouped_mm"
"""The implementation of transformers for a chunk of a prompt where all experts fit on the device."""


class CachedExperts:
    """The experts of all MoE layers of one model, computed out of one `LiveCache`."""

    def __init__(
        self,
        live: LiveCache,
        slot_table: SlotTable,
        readers: Readers,
        prefetch: Prefetch | None,
        forward_pass: ForwardPass,
        statistics: Statistics,
    ) -> None:
        self.live, self.slot_table, self.prefetch = live, slot_table, prefetch
        self.readers, self.forward_pass, self.statistics = readers, forward_pass, statistics
        self.recorder: LiveTrace | None = None
        self.on_decode: Callable[[int, Any], object] | None = None
        """Called with a layer and the experts [T][K] that it was asked for while decoding."""
        self._run_all_present: Any = ALL_EXPERTS_FUNCTIONS.get(ALL_PRESENT, per_expert_forward)
        self._failed = False

    def run_layer(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        """The weighted sum of each token's experts, [T, D].

        Raises UserError for router weights that are not finite, ReadFault for an expert that cannot be read.
        The engine can go on after either; experts that were evicted for this request stay evicted.
        """
        if self._failed:
            self.repair()
        self._failed = True
        try:
            out_TD = self._run(layer, module, hidden_TD, indices_TK, weights_TK)
        except BaseException:
            self.repair()
            raise
        self._failed = False
        return out_TD

    def repair(self) -> None:
        """Makes caches and slots agree again after a failure (a read fault, Ctrl-C)."""
        self.slot_table.reconcile()
        if self.prefetch:
            self.prefetch.forget()
        self._failed = False

    def release(self) -> None:
        """Gives back the memory of all slots; nothing can run until `hold` has brought others."""
        self.empty()
        self.recorder = None
        del self.live, self.slot_table, self.prefetch

    def hold(self, live: LiveCache, slot_table: SlotTable, prefetch: Prefetch | None) -> None:
        """Computes out of these caches and slots from now on."""
        self.live, self.slot_table, self.prefetch = live, slot_table, prefetch

    def empty(self) -> None:
        """Cold caches and empty slots."""
        self.slot_table.empty()
        if self.prefetch:
            self.prefetch.forget()

    def _run(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        if self.forward_pass.prefill:
            return self._run_chunk(layer, module, hidden_TD, indices_TK, weights_TK)
        if len(indices_TK) == 1:
            return self._run_token(layer, module, hidden_TD, indices_TK, weights_TK)
        return self._run_rows(layer, module, hidden_TD, indices_TK, weights_TK)

    def _run_token(self, layer: int, module: Any, hidden_1D: Tensor, indices_1K: Tensor, weights_1K: Tensor):
        experts, shares = indices_1K.flatten().tolist(), weights_1K.flatten().tolist()
        _check_finite(layer, sum(shares), hidden_1D)
        if shares != sorted(shares, reverse=True):
            weights_1K, indices_1K = router_order(weights_1K, indices_1K)
            experts = indices_1K.flatten().tolist()
        if max(experts) >= self.live.experts:
            return self._run_rows(layer, module, hidden_1D, indices_1K, weights_1K)
        self._record(layer, [experts], 0)
        plan = self.live.request(layer, experts)
        work = OneToken(module, hidden_1D, experts, weights_1K)
        present = None if plan.load else self.slot_table.if_all_present(layer, experts)
        if present is None:
            self._serve(layer, experts, plan, work)
            return work.result()
        self.statistics.decode.device_hits += len(experts)
        if self.prefetch:
            self.prefetch.after_request(layer, experts)
        work.add_all(present)
        return work.result()

    def _run_rows(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        """The rows of a batch, in groups whose experts the cache can hold: each group makes one request."""
        chosen_TK = self._chosen(layer, hidden_TD, indices_TK, weights_TK)
        rows = max(1, self.live.device.decode_cache.capacity // indices_TK.shape[1])
        outputs = []
        for begin in range(0, len(chosen_TK), rows):
            group, later = slice(begin, begin + rows), slice(begin + rows, begin + 2 * rows)
            work = ManyTokens(
                module, hidden_TD[group], indices_TK[group], weights_TK[group], self.live.experts
            )
            self._record(layer, chosen_TK[group], begin)
            self._serve_rows(layer, work, *map(self._routed, (chosen_TK[group], chosen_TK[later], chosen_TK)))
            outputs.append(work.result())
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _serve_rows(
        self, layer: int, work: Any, experts: list[int], later: list[int], of_all: list[int]
    ) -> None:
        """Serves rows that chose `experts`; the next group chose `later`, all rows `of_all`."""
        if not experts:
            return
        plan = self.live.request(layer, experts)
        self._serve(layer, list(dict.fromkeys(experts)), plan, work, later, of_all)

    def _routed(self, chosen_TK: np.ndarray) -> list[int]:
        """Every choice that is a routed expert, row by row."""
        return chosen_TK[chosen_TK < self.live.experts].tolist()

    def _run_chunk(self, layer: int, module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor):
        chosen_TK = self._chosen(layer, hidden_TD, indices_TK, weights_TK)
        self._record(layer, chosen_TK, 0)
        plan = self.live.prefill(layer, chosen_TK)
        requested = list(dict.fromkeys(self._routed(chosen_TK)))
        if not plan.load and self._as_in_memory(layer, module, hidden_TD, chosen_TK):
            self.statistics.prefill.device_hits += len(requested)
            run = per_expert_forward if carried(module) else self._run_all_present
            return run(module, hidden_TD, indices_TK, weights_TK)
        work = ManyTokens(module, hidden_TD, indices_TK, weights_TK, self.live.experts)
        self._serve(layer, requested, plan, work)
        return work.result()

    def _as_in_memory(self, layer: int, module: Any, hidden_TD: Tensor, chosen_TK: np.ndarray) -> bool:
        """Whether an implementation for experts in memory can compute a chunk of experts that are all
        present, and is the faster way.
        """
        every_slot_used = bool((chosen_TK < self.live.experts).all())
        if not self.slot_table.is_stacked(layer) or not every_slot_used or module.weighs_inputs:
            return False
        first = self.slot_table.expert(FlatId(layer * self.live.experts + int(chosen_TK[0, 0])))
        return bool(carried(module)) or not has_pass(module, hidden_TD, first.up)

    def _serve(
        self,
        layer: int,
        experts: Sequence[int],
        plan: TransferPlan,
        work: Any,
        later: Sequence[int] = (),
        of_all: Sequence[int] = (),
    ) -> None:
        """Loads and computes `experts`, which are distinct. Meanwhile readers read ahead: experts that a
        `later` request of this layer needs, else what the next layer will probably need after `of_all`.
        """
        first = layer * self.live.experts
        request = LayerRequest(
            slot_table=self.slot_table,
            readers=self.readers,
            prefetch=self.prefetch,
            flat_ids=[FlatId(first + expert) for expert in experts],
            plan=plan,
            work=work,
            counts=self.statistics.phase(self.forward_pass.prefill),
        )
        request.begin()
        if self.prefetch and later:
            self.prefetch.before_request(layer, list(dict.fromkeys(later)))
        elif self.prefetch:
            self.prefetch.after_request(layer, list(dict.fromkeys(of_all)) or experts)
        request.finish()

    def _chosen(self, layer: int, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> np.ndarray:
        """The router's choice in its order, [T, K], on the host."""
        _check_finite(layer, float(weights_TK.sum()), hidden_TD)
        _, ordered_TK = router_order(weights_TK, indices_TK)
        return ordered_TK.cpu().numpy()

    def _record(self, layer: int, chosen_TK: Any, begin: int) -> None:
        if self.on_decode is not None and not self.forward_pass.prefill:
            self.on_decode(layer, chosen_TK)
        if self.recorder is not None:
            requests = self.forward_pass.requests[begin : begin + len(chosen_TK)]
            self.recorder.add(layer, np.asarray(chosen_TK), requests, self.forward_pass.prefill, begin)


def _check_finite(layer: int, total: float, hidden_TD: Tensor) -> None:
    """Raises UserError for router weights that are not finite; it says whether the router is to blame."""
    if isfinite(total):
        return
    if torch.isfinite(hidden_TD).all():
        raise UserError(
            f"the router of MoE layer {layer} gives weights that are not finite (NaN or infinite)"
        )
    raise UserError(
        f"MoE layer {layer} is given hidden states that are not finite (NaN or infinite): a weight before it "
        + (f"or an expert of MoE layer {layer - 1} is damaged" if layer else "is damaged")
    )
