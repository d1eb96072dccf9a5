"""How a hit rate is counted: the options of every simulation, printed beside every number."""

from dataclasses import asdict, dataclass

import numpy as np

from dwellmoe.cache.access import PHASES, PassIndex, passes_of
from dwellmoe.cache.budget import is_whole
from dwellmoe.cache.trace import PREFILL, RoutingTrace
from dwellmoe.errors import UserError, unknown_name

CHOICES = {"scope": ("layer", "global"), "access": ("atomic", "sequential"), "reset": ("never", "request")}


@dataclass(frozen=True)
class CacheSetup:
    """What a hit rate means.

    scope   "layer": a cache for each layer, "global": one for all
    access  "atomic": a layer's experts are requested at once, "sequential": one after the other
    phase   "decode", "prefill" or "all": what is replayed and counted
    start   "cold"; "warm:prefill": prefill goes through the cache, uncounted; "warm:N": the first N passes
    reset   "never": one cache across requests; "request": emptied when the request changes
    """

    scope: str = "layer"
    access: str = "atomic"
    phase: str = "decode"
    start: str = "cold"
    reset: str = "never"

    def __post_init__(self) -> None:
        for field, choices in {**CHOICES, "phase": PHASES}.items():
            if getattr(self, field) not in choices:
                raise unknown_name(field, getattr(self, field), choices)
        if self.start == "warm":
            object.__setattr__(self, "start", "warm:prefill")
        kind, _, amount = self.start.partition(":")
        if self.start != "cold" and not (kind == "warm" and (amount == "prefill" or is_whole(amount))):
            raise unknown_name("start", self.start, ("cold", "warm:prefill", "warm:N"))
        if self.start == "warm:prefill" and self.phase != "decode":
            raise UserError(f"start 'warm:prefill' needs phase 'decode', got '{self.phase}'")

    def min_capacity(self, top_k: int) -> int:
        """Slots without which no token of K = `top_k` experts can be served."""
        return top_k if self.access == "atomic" else 1

    def fields(self) -> dict[str, str]:
        return asdict(self)

    def passes(self, trace: RoutingTrace) -> tuple[PassIndex, np.ndarray]:
        """The passes that go through the cache, and bool [passes]: which of them are counted."""
        if self.start == "warm:prefill":
            passes_of(trace, "decode")  # an error if there is nothing to count
            passes = passes_of(trace, "all")
            return passes, passes.phase != PREFILL
        passes = passes_of(trace, self.phase)
        warm_up = 0 if self.start == "cold" else int(self.start.partition(":")[2])
        if warm_up >= len(passes):
            raise UserError(
                f"start '{self.start}' leaves nothing to count: there are {len(passes)} {self.phase} passes"
            )
        return passes, np.arange(len(passes)) >= warm_up

    def resets(self, passes: PassIndex) -> np.ndarray:
        """bool [passes]: whether the cache is emptied first."""
        changed = np.append(True, passes.request[1:] != passes.request[:-1])
        return changed if self.reset == "request" else np.arange(len(passes)) == 0
