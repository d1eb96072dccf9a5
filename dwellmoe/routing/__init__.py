"""Sees, and may change, the experts a router chooses."""

from dwellmoe.routing.rerouter import Rerouter
from dwellmoe.routing.router_tap import RouterOutput, RouterTap, router_order
from dwellmoe.routing.trace_recorder import TraceRecorder, generated_lengths
from dwellmoe.routing.virtual_cache import VirtualCache

__all__ = [
    "Rerouter",
    "RouterOutput",
    "RouterTap",
    "TraceRecorder",
    "VirtualCache",
    "generated_lengths",
    "router_order",
]
