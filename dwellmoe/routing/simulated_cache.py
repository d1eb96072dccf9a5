"""Knows how a model runs as if only some experts were in memory; in truth all are, residency is simulated.

Letters: B rows of a batch, T tokens of a row (padding included), L MoE layers, E experts, K chosen a token.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache
from dwellmoe.families import MoeLayer
from dwellmoe.routing.rerouter import Rerouter, Rows
from dwellmoe.routing.router_tap import RouterOutput
from dwellmoe.routing.strategies.base import EMPTY
from dwellmoe.routing.token_importance import TokenImportance

HITS, MISSES, KEPT, AGREED, TOKENS, PREFILL_LOADS = range(6)


class _Stretch(NamedTuple):
    """One request's tokens of a forward pass: places in their row."""

    request: int
    row: int
    prompt: np.ndarray
    decoded: np.ndarray


class _Pass(NamedTuple):
    """Whose tokens run in a forward pass, and which of them are decoded."""

    width: int  # T
    stretches: list[_Stretch]


class SimulatedCache:
    """A strategy for `RouterTap`: each layer's choice is made as a cache of that size would have it made.

    Teacher forcing is exact in one causal pass: the choice of a layer for a token depends on what its cache
    held after the token before, so the tokens of a row are taken one after the other, row after row, layer by
    layer. One cache serves all passes, as in a server.

    spec             a strategy of routing/strategies; `none` keeps every choice and only counts
    policy, capacity, prefill_handoff   of the decode cache, in slots a layer, and of `PrefillDecodeCache`
    reroute_prefill  prompt tokens are re-routed too, all of a chunk against what was resident before it
    """

    def __init__(
        self,
        model: nn.Module,
        moe_layers: Sequence[MoeLayer],
        spec: str,
        *,
        policy: str,
        capacity: int,
        prefill_handoff: str = "recent:tokens=8",
        reroute_prefill: bool = False,
    ):
        self.rerouter = Rerouter(model, moe_layers, spec)
        experts = moe_layers[0].num_experts
        cache = ExpertCache(policy, layers=len(moe_layers), experts=experts, capacity=capacity)
        self.split = PrefillDecodeCache(cache, prefill_handoff)
        self.reroute_prefill = reroute_prefill
        self.tallies = new_tallies(len(moe_layers))
        watched = reroute_prefill and getattr(self.rerouter.strategy, "WANTS_IMPORTANCE", False)
        self._importance = TokenImportance(model, moe_layers) if watched else None
        self._described: dict[int, _Pass] = {}
        self._requests: Sequence[int] = ()

    @property
    def reroutes(self) -> bool:
        """Whether any choice may be another than the router's own."""
        return self.rerouter.spec != "none"

    def reset(self) -> None:
        """Back to a cold cache that has counted nothing."""
        self.split.reset()
        self.rerouter.reset()
        self.tallies.clear()

    def describe(
        self, requests: Sequence[int] | np.ndarray, valid_BT: np.ndarray, decode_BT: np.ndarray
    ) -> None:
        """Says what runs in the next forward pass: `requests` numbers the request of each row [B] or, for
        packed rows, of each token [B, T]. PassIndex not described are decode steps of the same rows.
        """
        valid_BT, decode_BT = np.asarray(valid_BT, bool), np.asarray(decode_BT, bool)
        request_BT = np.broadcast_to(np.reshape(requests, (len(valid_BT), -1)), valid_BT.shape)
        described = _Pass(valid_BT.shape[1], _stretches(request_BT, valid_BT, decode_BT))
        self._described = dict.fromkeys(range(self.split.cache.layers), described)
        self._requests = [] if np.ndim(requests) > 1 else list(requests)
        if self._importance:
            self._importance.start()

    def __call__(self, output: RouterOutput) -> tuple[Tensor, Tensor]:
        rows, layer = self.rerouter.read(output), output.layer.index
        described = self._described.pop(layer, None)
        if described is None:
            return self.rerouter.replace(output, self._step(layer, rows, self._requests))
        chosen_TK = rows.own_TK.copy()
        for stretch in described.stretches:
            self._walk(layer, rows, chosen_TK, stretch, described.width)
        if self._importance and not self._described:
            self._importance.stop()
        return self.rerouter.replace(output, chosen_TK)

    def _walk(self, layer: int, rows: Rows, chosen_TK: np.ndarray, stretch: _Stretch, width: int) -> None:
        """A request's prompt as one chunk, then its decoded tokens one after the other."""
        first = stretch.row * width
        if len(stretch.prompt):
            of = self._importance.of if self._importance else lambda *_: None
            importance_T = of(layer, stretch.row, stretch.prompt)
            places = first + stretch.prompt
            chosen_TK[places] = self._prompt(layer, rows.at(places), stretch.request, importance_T)
        for place in (first + stretch.decoded).tolist():
            at = slice(place, place + 1)
            chosen_TK[at] = self._step(layer, rows.at(at), [stretch.request])

    def _prompt(self, layer: int, rows: Rows, request: int, importance_T: np.ndarray | None) -> np.ndarray:
        """A chunk of one request's prompt."""
        resident_E = self.split.cache.resident(layer) if self.reroute_prefill else None
        chosen_TK = self.rerouter.prompt(layer, rows, resident_E, importance_T)
        asked_TK = np.where(chosen_TK == EMPTY, self.split.cache.experts, chosen_TK)
        self.tallies[request][layer, PREFILL_LOADS] += len(self.split.prefill(layer, asked_TK).loads)
        return chosen_TK

    def _step(self, layer: int, rows: Rows, requests: Sequence[int]) -> np.ndarray:
        """One token of each request; all choose by what was resident before the step, and ask in waves that
        surely fit.
        """
        chosen_TK = self.rerouter.choose(layer, rows, self.split.cache.resident(layer))
        self.rerouter.use(layer, chosen_TK)
        rows_a_wave = max(1, self.split.cache.capacity // chosen_TK.shape[1])
        for begin in range(0, len(chosen_TK), rows_a_wave):
            wave = slice(begin, begin + rows_a_wave)
            self._ask(layer, chosen_TK[wave], rows.own_TK[wave], requests[wave])
        return chosen_TK

    def _ask(self, layer: int, chosen_TK: np.ndarray, own_TK: np.ndarray, requests: Sequence[int]) -> None:
        """A row hits what was resident before the wave or was loaded for a row before it."""
        resident_E = self.split.cache.resident(layer)
        self.split.decode(layer, chosen_TK[chosen_TK != EMPTY])
        count_rows(self.tallies, layer, resident_E, chosen_TK, own_TK, requests)


def new_tallies(layers: int) -> dict[int, np.ndarray]:
    """Request -> int [L, 6]: decode hits, misses, experts run, of those the router's own, tokens; prefill
    loads.
    """
    return defaultdict(lambda: np.zeros((layers, 6), np.int64))


def count_rows(
    tallies: dict[int, np.ndarray],
    layer: int,
    resident_E: np.ndarray,
    chosen_TK: np.ndarray,
    own_TK: np.ndarray,
    requests: Sequence[int],
) -> None:
    """Adds one decoded token of each request to its tally; `resident_E` is changed to what was loaded."""
    for row, own, request in zip(chosen_TK.tolist(), own_TK.tolist(), requests, strict=True):
        kept = {expert for expert in row if expert != EMPTY}
        hits = sum(bool(resident_E[expert]) for expert in kept)
        counts = hits, len(kept) - hits, len(kept), len(kept.intersection(own)), 1
        tallies[request][layer, :PREFILL_LOADS] += counts
        resident_E[list(kept)] = True


def _stretches(request_BT: np.ndarray, valid_BT: np.ndarray, decode_BT: np.ndarray) -> list[_Stretch]:
    """Row after row, each row's requests in the order in which they begin."""
    found = []
    for row, (request_T, valid_T, decode_T) in enumerate(zip(request_BT, valid_BT, decode_BT, strict=True)):
        for request in dict.fromkeys(request_T[valid_T].tolist()):
            mine_T = valid_T & (request_T == request)
            prompt, decoded = np.flatnonzero(mine_T & ~decode_T), np.flatnonzero(mine_T & decode_T)
            found.append(_Stretch(request, row, prompt, decoded))
    return found
