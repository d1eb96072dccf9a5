"""Counts of an engine: tokens, hits, loads, bytes and seconds of each phase, and what prefetching read.

The engine's parts add to the fields; `Engine.statistics` hands them out.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class HitCounts(NamedTuple):
    """Requests of decoding to the decode cache, counted by the cache as the simulator counts them."""

    hits: int
    misses: int
    compulsory_misses: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """Hits of all requests; 0 where there was none."""
        requested = self.hits + self.misses
        return self.hits / requested if requested else 0.0

    def minus(self, earlier: "HitCounts") -> "HitCounts":
        return HitCounts(*(now - then for now, then in zip(self, earlier, strict=True)))

    def fields(self) -> dict[str, Any]:
        """Plain numbers, for a report."""
        return self._asdict() | {"hit_rate": self.hit_rate}


@dataclass
class PhaseCounts:
    """One phase, prefill or decode. An expert counts once for each layer and forward pass that needs it."""

    tokens: int = 0
    passes: int = 0
    seconds: float = 0.0
    """Of forward passes."""
    device_hits: int = 0
    ram_hits: int = 0
    disk_loads: int = 0
    disk_bytes: int = 0
    ram_bytes: int = 0
    stall_seconds: float = 0.0
    """The computation waited for experts."""
    prefetch_hits: int = 0
    """Of `disk_loads`: begun before the expert was requested."""

    @property
    def device_hit_rate(self) -> float:
        requested = self.device_hits + self.ram_hits + self.disk_loads
        return self.device_hits / requested if requested else 0.0

    def fields(self) -> dict[str, Any]:
        return dict(vars(self)) | {"device_hit_rate": self.device_hit_rate}


@dataclass
class Statistics:
    """Everything counted since the engine began, or since its last `reset`."""

    prefill: PhaseCounts = field(default_factory=PhaseCounts)
    decode: PhaseCounts = field(default_factory=PhaseCounts)
    prefetch_issued: int = 0
    prefetch_wasted: int = 0
    """Prefetched at least in part, and not requested."""
    prefetch_cancelled: int = 0
    """Cancelled before a reader began."""
    prefetch_wasted_bytes: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    """One entry a request: forward passes of its prompt, first to last (time to first token)."""

    @property
    def token_seconds(self) -> float | None:
        """Mean seconds of a decoded token's forward pass; None where nothing was decoded."""
        return self.decode.seconds / self.decode.passes if self.decode.passes else None

    def phase(self, prefill: bool) -> PhaseCounts:
        return self.prefill if prefill else self.decode

    def reset(self) -> None:
        """All counts back to zero, in place: the engine's parts share this object."""
        self.__init__()

    def fields(self) -> dict[str, Any]:
        """Plain numbers, for a report."""
        phases = {"prefill": self.prefill.fields(), "decode": self.decode.fields()}
        return vars(self) | phases | {"token_seconds": self.token_seconds}
