"""Records the requests to an engine's caches as a routing trace.

Letters: T tokens of a pass, L layers, K experts chosen a token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError


class _Pass(NamedTuple):
    experts_TLK: np.ndarray
    requests_T: np.ndarray
    phase: int


class LiveTrace:
    """Rows that made one request together form a pass and share a `batch_step`. A pass that failed is not in
    the trace. Padding runs through the experts as any token does, and is recorded like one.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self._passes: list[_Pass] = []
        self._open: dict[int, list[np.ndarray]] = {}
        """First row of a pass -> its layers so far."""

    def add(
        self, layer: int, experts_TK: np.ndarray, requests_T: np.ndarray, prefill: bool, begin: int
    ) -> None:
        """Adds a request of `layer`, experts in router order; layers are added in order. A forward pass whose
        rows do not fit into the cache together is several passes, distinguished by their first row `begin`.
        """
        if layer == 0:
            self._open = self._open if begin else {}
            self._open[begin] = []
        seen = self._open.get(begin)
        if seen is None or layer != len(seen):
            return  # its first layers failed
        seen.append(np.array(experts_TK))
        if len(seen) == self.layers:
            experts_TLK = np.stack(self._open.pop(begin), axis=1)
            self._passes.append(_Pass(experts_TLK, np.asarray(requests_T), PREFILL if prefill else DECODE))

    def trace(self, model: str, layer_ids: Sequence[int], expert_bytes: Sequence[int]) -> RoutingTrace:
        """Everything recorded so far. UserError where there is nothing."""
        if not self._passes:
            raise UserError("no pass has run through the expert cache since recording began")
        experts = np.concatenate([each.experts_TLK for each in self._passes])
        experts = np.where(experts < self.experts, experts, EMPTY).astype(np.uint16)
        sizes = [len(each.experts_TLK) for each in self._passes]
        return RoutingTrace(
            experts,
            np.repeat([each.phase for each in self._passes], sizes).astype(np.uint8),
            np.concatenate([each.requests_T for each in self._passes]).astype(np.int32),
            self.experts,
            layer_ids=tuple(layer_ids),
            expert_bytes=tuple(expert_bytes),
            model=model,
            source="live",
            batch_step=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
        )
