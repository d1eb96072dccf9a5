"""Knows how to record what the caches of an engine were asked, as a routing trace; does not ask them.

Letters: T tokens of a pass, L layers, K experts chosen a token.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError


class LiveTrace:
    """A pass is what asked the caches together; its rows carry one `batch_step`. A pass that broke off is not
    in the trace. Padding runs through the experts as any token does, and is recorded like one.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.layers, self.experts = layers, experts
        self.clear()

    def clear(self) -> None:
        self._rows: list[np.ndarray] = []
        self._about: list[tuple[np.ndarray, int]] = []
        self._open: dict[int, list[np.ndarray]] = {}  # first row of a pass -> its layers so far

    def add(
        self, layer: int, experts_TK: np.ndarray, requests_T: np.ndarray, prefill: bool, begin: int
    ) -> None:
        """What `layer` asked for, in router order; layers come in order. A forward pass whose rows do not fit
        together is several passes, told apart by their first row `begin`.
        """
        if layer == 0:
            self._open = self._open if begin else {}
            self._open[begin] = []
        seen = self._open.get(begin)
        if seen is None or layer != len(seen):
            return  # its first layers broke off
        seen.append(np.array(experts_TK))
        if len(seen) == self.layers:
            self._rows.append(np.stack(self._open.pop(begin), axis=1))
            self._about.append((np.asarray(requests_T), PREFILL if prefill else DECODE))

    def trace(self, model: str, layer_ids: Sequence[int], expert_bytes: Sequence[int]) -> RoutingTrace:
        """Everything recorded so far. UserError where there is nothing."""
        if not self._rows:
            raise UserError("no pass has run through the expert cache since recording began")
        experts = np.concatenate(self._rows)
        experts = np.where(experts < self.experts, experts, EMPTY).astype(np.uint16)
        sizes = [len(rows) for rows in self._rows]
        return RoutingTrace(
            experts,
            np.repeat([phase for _, phase in self._about], sizes).astype(np.uint8),
            np.concatenate([requests for requests, _ in self._about]).astype(np.int32),
            self.experts,
            layer_ids=tuple(layer_ids),
            expert_bytes=tuple(expert_bytes),
            model=model,
            source="live",
            batch_step=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
        )
