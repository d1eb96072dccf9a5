"""Reads, records and changes the experts that routers choose."""

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
