"""Watermark placement over device and RAM, driven by the requests of a model's layers.

Letters: L layers, E experts a layer, N = L * E experts in all, by flat id.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.device import PlacementConstants
from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.predictors import Predictor, make_predictor
from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM, Tier, nothing_placed, place
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.cache.transfer_plan import TransferPlan

NO_PREFETCHES = (0, 0)


class Prefetched(NamedTuple):
    """Experts that came up although they were not requested."""

    to_device: list[FlatId]
    to_ram: list[FlatId]


class WatermarkCache:
    """Keeps the experts of the highest value in device and RAM. The value of an expert is the uses expected
    in the next `window` runs of its layer, each less by exp(-gamma) for each layer until then.

    `request` brings up what a layer needs, and prices decide what makes room for it; with `prefetches` it
    also brings up the likeliest of the others before they are requested. Probabilities are those of
    `predictor`; for the layers of the running token within the horizon of `lookahead`, a share `eta` is that
    predictor's. A predictor given as `lookahead` takes the place of the one named in `constants`; one that
    knows of runs after the next (`predict_later`) the place of `predictor`.
    """

    def __init__(
        self,
        expert_bytes: Sequence[int],
        experts: int,
        tiers: tuple[Tier, Tier],
        constants: PlacementConstants,
        lookahead: Predictor | None = None,
    ) -> None:
        layers = len(expert_bytes)
        self.layers = layers
        self.experts = experts
        self.tiers = tiers
        self.constants = constants
        self.size = np.repeat(np.asarray(expert_bytes, np.int64), experts)
        self.placement = nothing_placed(layers * experts)
        self._predictor = make_predictor(constants.predictor, layers, experts)
        self._lookahead = lookahead
        if lookahead is None and constants.lookahead:
            self._lookahead = make_predictor(constants.lookahead, layers, experts)
        self._prior_LE = np.zeros((layers, experts))  # of the runs of a layer after its next one
        self._next_LE = np.zeros((layers, experts))  # of its next one
        if hasattr(self._lookahead, "predict_later"):
            self._predictor, self._lookahead = self._lookahead, None
        later = np.exp(-constants.gamma * layers * np.arange(1, constants.window))
        self._later = float(later.sum())  # weight of the runs after the next
        self._last_use = np.zeros(layers * experts, np.int64)
        self._requests = 0

    def follow(self, trace: RoutingTrace) -> None:
        """The decoded tokens of `trace` will run. UserError where predictions were recorded of others."""
        for predictor in filter(None, (self._predictor, self._lookahead)):
            predictor.follow(trace)

    def request(
        self, layer: int, experts: Sequence[int], prefetches: tuple[int, int] = NO_PREFETCHES
    ) -> TransferPlan:
        """Layer `layer` needs `experts`; up to `prefetches` others may come up, to the device and to RAM.

        `load` and `promote` are of `experts` alone (see `prefetched`). UserError where those do not fit.
        """
        requested = np.asarray(experts, np.int64) + layer * self.experts
        self._observe(layer, requested)
        before = self.placement
        value = self._value(layer)
        self.placement = place(
            before,
            value,
            self.size,
            self.tiers,
            running=requested.tolist(),
            last_use=self._last_use,
            hysteresis=self.constants.hysteresis,
            rising=self._rising(value, prefetches),
        )
        return self._plan(before.tier, requested)

    def prefetched(self, before: np.ndarray, requested: Sequence[int]) -> Prefetched:
        """What came up since `before`, uint8 [N], although it was not requested."""
        now = self.placement.tier
        others = np.ones(len(before), np.bool_)
        others[list(requested)] = False
        to_device = others & (now == DEVICE) & (before != DEVICE)
        to_ram = (now == RAM) & (before == DISK)
        return Prefetched(_flat_ids(to_device), _flat_ids(to_ram))

    def _observe(self, layer: int, requested: np.ndarray) -> None:
        used_E = np.zeros(self.experts, np.bool_)
        used_E[requested - layer * self.experts] = True
        self._requests += 1
        self._last_use[requested] = self._requests
        self._predictor.watch(layer, used_E)
        self._next_LE[layer] = self._predictor.predict(layer)
        predict_later = getattr(self._predictor, "predict_later", None)
        self._prior_LE[layer] = predict_later(layer) if predict_later else self._next_LE[layer]
        if self._lookahead:
            self._lookahead.watch(layer, used_E)
            # Of the next token it knows no more than the other predictor.
            furthest = min(layer + self._lookahead.horizon, self.layers - 1)
            for following in range(layer + 1, furthest + 1):
                self._look_ahead(self._lookahead, following)

    def _look_ahead(self, lookahead: Predictor, following: int) -> None:
        eta = self.constants.eta
        prior_E = self._predictor.predict(following)
        self._next_LE[following] = (1 - eta) * prior_E + eta * lookahead.predict(following)

    def _value(self, running: int) -> np.ndarray:
        """float64 [N]; the running layer's experts have the value of their next run, a whole round later."""
        distance_L = (np.arange(self.layers) - running - 1) % self.layers + 1
        uses_LE = self._next_LE + self._later * self._prior_LE
        return (uses_LE * np.exp(-self.constants.gamma * distance_L)[:, None]).ravel()

    def _rising(self, value: np.ndarray, limits: tuple[int, int]) -> tuple[Sequence[int], Sequence[int]]:
        """The likeliest experts one tier below the device, and the likeliest on disk."""
        tier = self.placement.tier
        has_ram = self.tiers[1].limit_bytes > 0
        to_device = _best(value, tier == (RAM if has_ram else DISK), limits[0])
        return to_device, _best(value, tier == DISK, limits[1] if has_ram else 0)

    def _plan(self, before: np.ndarray, requested: np.ndarray) -> TransferPlan:
        now = self.placement.tier
        missing = requested[before[requested] != DEVICE]
        left_device = (before == DEVICE) & (now != DEVICE)
        return TransferPlan(
            hits=len(requested) - len(missing),
            load=missing.tolist(),
            evict=_flat_ids(left_device),
            promote=missing[before[missing] == RAM].tolist(),
            demote=_flat_ids(left_device & (now == RAM)),
            drop=_flat_ids((before == RAM) & (now == DISK)),
        )


def _flat_ids(mask_N: np.ndarray) -> list[FlatId]:
    return [FlatId(each) for each in np.flatnonzero(mask_N).tolist()]


def _best(value: np.ndarray, among: np.ndarray, limit: int) -> list[int]:
    """The `limit` most valuable, best first; none of value 0."""
    if not limit:
        return []
    candidates = np.flatnonzero(among & (value > 0))
    return candidates[np.argsort(-value[candidates], kind="stable")[:limit]].tolist()
