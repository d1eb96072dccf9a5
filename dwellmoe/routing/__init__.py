"""Reads, records and changes the experts that routers choose."""

from typing import TYPE_CHECKING

from dwellmoe.lazy import lazily

if TYPE_CHECKING:
    from dwellmoe.routing.rerouter import Rerouter
    from dwellmoe.routing.router_tap import RouterOutput, RouterTap, router_order
    from dwellmoe.routing.simulated_cache import SimulatedCache
    from dwellmoe.routing.trace_recorder import TraceRecorder, generated_lengths

__all__ = [
    "Rerouter",
    "RouterOutput",
    "RouterTap",
    "SimulatedCache",
    "TraceRecorder",
    "generated_lengths",
    "router_order",
]

__getattr__ = lazily(
    __name__,
    {
        "Rerouter": "rerouter",
        **dict.fromkeys(("RouterOutput", "RouterTap", "router_order"), "router_tap"),
        "SimulatedCache": "simulated_cache",
        **dict.fromkeys(("TraceRecorder", "generated_lengths"), "trace_recorder"),
    },
)
