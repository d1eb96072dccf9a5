"""Runs a model as if only some experts were in memory: residency is simulated, all experts are there.

Letters: B rows of a batch, T tokens of a row (padding included), L MoE layers, E experts, K chosen a token.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache
from dwellmoe.cache.trace import SIGNED_EMPTY
from dwellmoe.families import MoeLayer
from dwellmoe.routing.rerouter import Rerouter, Rows
from dwellmoe.routing.router_tap import RouterOutput
from dwellmoe.routing.token_importance import TokenImportance

HITS, MISSES, KEPT, AGREED, TOKENS, PREFILL_LOADS = range(6)
"""Columns of a tally: decode hits, misses, experts run, of those the router's own, tokens; prefill loads."""


class _Segment(NamedTuple):
    """The tokens of one request in a forward pass, as positions in their row."""

    request: int
    row: int
    prompt: np.ndarray
    decoded: np.ndarray


class _Pass(NamedTuple):
    """The requests of a forward pass."""

    width: int  # T
    segments: list[_Segment]


class SimulatedCache:
    """A strategy for `RouterTap` that re-routes each layer by what a cache of a given size would hold.

    Teacher forcing is exact in one causal pass: a layer's choice for a token depends on what its cache held
    after the token before, so the tokens of a row are taken one after the other, row after row, layer by
    layer. One cache serves all passes, as in a server.

    spec             a routing strategy; `none` keeps every choice and only counts
    policy           eviction policy of the decode cache
    capacity         slots a layer of the decode cache
    prefill_handoff  what moves from prefill to the decode cache, see `PrefillDecodeCache`
    reroute_prefill  prompt tokens are re-routed too, all of a chunk by what was resident before it
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
        self.cache = PrefillDecodeCache(cache, prefill_handoff)
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
        self.cache.reset()
        self.rerouter.reset()
        self.tallies.clear()

    def describe(
        self, requests: Sequence[int] | np.ndarray, valid_BT: np.ndarray, decode_BT: np.ndarray
    ) -> None:
        """Describes the next forward pass; a pass that is not described is a decode step of the same rows.

        `requests` numbers the request of each row [B] or, for packed rows, of each token [B, T].
        """
        valid_BT = np.asarray(valid_BT, bool)
        decode_BT = np.asarray(decode_BT, bool)
        request_BT = np.broadcast_to(np.reshape(requests, (len(valid_BT), -1)), valid_BT.shape)
        described = _Pass(valid_BT.shape[1], _segments(request_BT, valid_BT, decode_BT))
        self._described = dict.fromkeys(range(self.cache.decode_cache.layers), described)
        self._requests = [] if np.ndim(requests) > 1 else list(requests)
        if self._importance:
            self._importance.start()

    def __call__(self, output: RouterOutput) -> tuple[Tensor, Tensor]:
        rows, layer = self.rerouter.read(output), output.layer.index
        described = self._described.pop(layer, None)
        if described is None:
            return self.rerouter.replace(output, self._step(layer, rows, self._requests))
        chosen_TK = rows.own_TK.copy()
        for segment in described.segments:
            self._choose_segment(layer, rows, chosen_TK, segment, described.width)
        if self._importance and not self._described:
            self._importance.stop()
        return self.rerouter.replace(output, chosen_TK)

    def _choose_segment(
        self, layer: int, rows: Rows, chosen_TK: np.ndarray, segment: _Segment, width: int
    ) -> None:
        """A request's prompt as one chunk, then its decoded tokens one after the other."""
        first = segment.row * width
        if len(segment.prompt):
            of = self._importance.of if self._importance else lambda *_: None
            importance_T = of(layer, segment.row, segment.prompt)
            chunk = first + segment.prompt
            chosen_TK[chunk] = self._prompt(layer, rows.take(chunk), segment.request, importance_T)
        for i in (first + segment.decoded).tolist():
            token = slice(i, i + 1)
            chosen_TK[token] = self._step(layer, rows.take(token), [segment.request])

    def _prompt(self, layer: int, rows: Rows, request: int, importance_T: np.ndarray | None) -> np.ndarray:
        """A chunk of one request's prompt."""
        resident_E = self.cache.decode_cache.resident(layer) if self.reroute_prefill else None
        chosen_TK = self.rerouter.prompt(layer, rows, resident_E, importance_T)
        requested_TK = np.where(chosen_TK == SIGNED_EMPTY, self.cache.decode_cache.experts, chosen_TK)
        self.tallies[request][layer, PREFILL_LOADS] += len(self.cache.prefill(layer, requested_TK).load)
        return chosen_TK

    def _step(self, layer: int, rows: Rows, requests: Sequence[int]) -> np.ndarray:
        """One token of each request; all choose by what was resident before the step.

        As many rows as surely fit into the cache make one request to it, a wave.
        """
        chosen_TK = self.rerouter.choose(layer, rows, self.cache.decode_cache.resident(layer))
        self.rerouter.use(layer, chosen_TK)
        rows_a_wave = max(1, self.cache.decode_cache.capacity // chosen_TK.shape[1])
        for begin in range(0, len(chosen_TK), rows_a_wave):
            wave = slice(begin, begin + rows_a_wave)
            self._request_wave(layer, chosen_TK[wave], rows.own_TK[wave], requests[wave])
        return chosen_TK

    def _request_wave(
        self, layer: int, chosen_TK: np.ndarray, own_TK: np.ndarray, requests: Sequence[int]
    ) -> None:
        """A row hits what was resident before the wave or was loaded for an earlier row of it."""
        resident_E = self.cache.decode_cache.resident(layer)
        self.cache.request(layer, chosen_TK[chosen_TK != SIGNED_EMPTY])
        count_rows(self.tallies, layer, resident_E, chosen_TK, own_TK, requests)


def new_tallies(layers: int) -> dict[int, np.ndarray]:
    """Request -> its tally, int [L, 6] with the columns `HITS` to `PREFILL_LOADS`."""
    return defaultdict(lambda: np.zeros((layers, 6), np.int64))


def count_rows(
    tallies: dict[int, np.ndarray],
    layer: int,
    resident_E: np.ndarray,
    chosen_TK: np.ndarray,
    own_TK: np.ndarray,
    requests: Sequence[int],
) -> None:
    """Adds one decoded token of each request to its tally and what it loads to `resident_E`."""
    for row, own, request in zip(chosen_TK.tolist(), own_TK.tolist(), requests, strict=True):
        kept = {expert for expert in row if expert != SIGNED_EMPTY}
        hits = sum(bool(resident_E[expert]) for expert in kept)
        counts = hits, len(kept) - hits, len(kept), len(kept.intersection(own)), 1
        tallies[request][layer, :PREFILL_LOADS] += counts
        resident_E[list(kept)] = True


def _segments(request_BT: np.ndarray, valid_BT: np.ndarray, decode_BT: np.ndarray) -> list[_Segment]:
    """Row after row, each row's requests in the order in which they begin; of a conversation each answer with
    the prompt before it.
    """
    found = []
    for row, (request_T, valid_T, decode_T) in enumerate(zip(request_BT, valid_BT, decode_BT, strict=True)):
        for request in dict.fromkeys(request_T[valid_T].tolist()):
            mine = np.flatnonzero(valid_T & (request_T == request))
            decoded = decode_T[mine]
            answers_end = np.flatnonzero(decoded[:-1] & ~decoded[1:]) + 1
            for turn in np.split(mine, answers_end):
                found.append(_Segment(request, row, turn[~decode_T[turn]], turn[decode_T[turn]]))
    return found
