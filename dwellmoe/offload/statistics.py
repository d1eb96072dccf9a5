"""Knows what an engine counted while it ran; counts nothing by itself and decides nothing."""

from dataclasses import dataclass, field
from typing import Any

PREFILL, DECODE = "prefill", "decode"


@dataclass
class PhaseCounts:
    """One phase. Experts are counted once a layer and pass that needed them."""

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
    """Of `disk_loads`: read ahead before they were asked for."""

    def fields(self) -> dict[str, Any]:
        asked = self.device_hits + self.ram_hits + self.disk_loads
        rate = self.device_hits / asked if asked else 0.0
        return dict(vars(self)) | {"device_hit_rate": rate}


@dataclass
class Statistics:
    """Since the engine began, or `reset`."""

    phases: dict[str, PhaseCounts] = field(
        default_factory=lambda: {PREFILL: PhaseCounts(), DECODE: PhaseCounts()}
    )
    prefetch_issued: int = 0
    prefetch_wasted: int = 0
    """Read ahead, at least in part, for nothing."""
    prefetch_cancelled: int = 0
    """Called off before a reader began."""
    prefetch_wasted_bytes: int = 0
    first_token_seconds: list[float] = field(default_factory=list)
    """A request: from the start of its prompt's first pass to the end of the last (TTFT)."""

    def reset(self) -> None:
        self.__init__()

    def fields(self) -> dict[str, Any]:
        """Plain numbers, for a report."""
        plain = {name: value for name, value in vars(self).items() if name != "phases"}
        decode = self.phases[DECODE]
        return plain | {
            **{name: counts.fields() for name, counts in self.phases.items()},
            "token_seconds": decode.seconds / decode.passes if decode.passes else None,
        }
