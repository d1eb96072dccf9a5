"""Knows how watermark placement serves a model's layers in turn; moves nothing and keeps no time.

Expert e of layer l is number l * E + e, of N in all.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dwellmoe.cache.device import PlacementConstants
from dwellmoe.cache.predictors import make_predictor
from dwellmoe.cache.tiers.tier_stack import TierStep
from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM, Tier, nothing_placed, place
from dwellmoe.cache.trace import RoutingTrace

NO_ROOM = (0, 0)


class WatermarkCache:
    """Device and RAM, kept by what each expert's place is worth: the uses expected in the next `window` runs
    of its layer, each less by exp(-gamma) a layer until then.

    `step` brings up what a layer asks for, and lets prices say who makes room; with `rooms` it also brings up
    the likeliest of the others, before they are asked for. Likelihoods are those of `predictor`; for the
    layers of the running token that `ahead` reaches, a share `eta` is what that says. Given as a predictor,
    `ahead` takes the place of the one that `constants` name.
    """

    def __init__(
        self,
        expert_bytes: Sequence[int],
        experts: int,
        tiers: tuple[Tier, Tier],
        constants: PlacementConstants,
        ahead: Any = None,
    ) -> None:
        layers = len(expert_bytes)
        self.layers, self.experts, self.tiers, self.constants = layers, experts, tiers, constants
        self.size = np.repeat(np.asarray(expert_bytes, np.int64), experts)
        self.placement = nothing_placed(layers * experts)
        self._usual = make_predictor(constants.predictor, layers, experts)
        self._ahead = ahead
        if ahead is None and constants.ahead:
            self._ahead = make_predictor(constants.ahead, layers, experts)
        self._usual_LE = np.zeros((layers, experts))  # of any run of a layer
        self._next_LE = np.zeros((layers, experts))  # of its next one
        later = np.exp(-constants.gamma * layers * np.arange(1, constants.window))
        self._later = float(later.sum())  # what the runs after the next weigh, beside it
        self._last_use, self._steps = np.zeros(layers * experts, np.int64), 0

    def follow(self, trace: RoutingTrace) -> None:
        """The decoded tokens of `trace` will run. UserError where predictions were recorded of others."""
        for each in filter(None, (self._usual, self._ahead)):
            each.follow(trace)

    def step(self, layer: int, experts: Sequence[int], rooms: tuple[int, int] = NO_ROOM) -> TierStep:
        """Layer `layer` asks for `experts`; beside them up to `rooms` may rise to the device and to RAM.

        `from_ram` and `from_disk` are what is asked for. UserError where that alone does not fit.
        """
        asked = np.asarray(experts, np.int64) + layer * self.experts
        self._watch(layer, asked)
        before, value = self.placement, self._value(layer)
        self.placement = place(
            before,
            value,
            self.size,
            self.tiers,
            asked.tolist(),
            self._last_use,
            self.constants.hysteresis,
            self._rising(value, rooms),
        )
        return self._moves(before.tier, asked)

    def rose(self, before: np.ndarray, asked: Sequence[int]) -> tuple[list[int], list[int]]:
        """Who came up without being asked for since `before`, uint8 [N]: (to the device, to RAM)."""
        now, mine = self.placement.tier, np.ones(len(before), np.bool_)
        mine[list(asked)] = False
        to_device = mine & (now == DEVICE) & (before != DEVICE)
        return np.flatnonzero(to_device).tolist(), np.flatnonzero((now == RAM) & (before == DISK)).tolist()

    def _watch(self, layer: int, asked: np.ndarray) -> None:
        used_E = np.zeros(self.experts, np.bool_)
        used_E[asked - layer * self.experts] = True
        self._steps += 1
        self._last_use[asked] = self._steps
        self._usual.watch(layer, used_E)
        self._usual_LE[layer] = self._next_LE[layer] = self._usual.predict(layer)
        if self._ahead:
            self._ahead.watch(layer, used_E)
            furthest = min(layer + self._ahead.reach, self.layers - 1)  # of the next token it knows no more
            for following in range(layer + 1, furthest + 1):
                self._look_ahead(following)

    def _look_ahead(self, following: int) -> None:
        assert self._ahead is not None
        eta, told_E = self.constants.eta, self._ahead.predict(following)
        self._next_LE[following] = (1 - eta) * self._usual.predict(following) + eta * told_E

    def _value(self, running: int) -> np.ndarray:
        """float64 [N]: of the running layer's experts that of a whole round later."""
        distance_L = (np.arange(self.layers) - running - 1) % self.layers + 1
        uses_LE = self._next_LE + self._later * self._usual_LE
        return (uses_LE * np.exp(-self.constants.gamma * distance_L)[:, None]).ravel()

    def _rising(self, value: np.ndarray, rooms: tuple[int, int]) -> tuple[Sequence[int], Sequence[int]]:
        """The likeliest a tier below the device, and the likeliest on disk."""
        tier, has_ram = self.placement.tier, self.tiers[1].limit_bytes > 0
        to_device = _best(value, tier == (RAM if has_ram else DISK), rooms[0])
        return to_device, _best(value, tier == DISK, rooms[1] if has_ram else 0)

    def _moves(self, before: np.ndarray, asked: np.ndarray) -> TierStep:
        now, came_from = self.placement.tier, before[asked]
        down = before < now
        demoted = np.flatnonzero(down & (now == RAM))
        dropped = np.flatnonzero(down & (now == DISK))
        return TierStep(
            int((came_from == DEVICE).sum()),
            asked[came_from == RAM].tolist(),
            asked[came_from == DISK].tolist(),
            demoted.tolist(),
            dropped.tolist(),
        )


def _best(value: np.ndarray, among: np.ndarray, room: int) -> list[int]:
    """The `room` most valuable, best first; none that is worth nothing."""
    if not room:
        return []
    numbers = np.flatnonzero(among & (value > 0))
    return numbers[np.argsort(-value[numbers], kind="stable")[:room]].tolist()
