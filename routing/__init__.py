"""Sees, and may change, the experts a router chooses."""

from routing.rerouter import Rerouter
from routing.router_tap import RouterOutput, RouterTap, router_order
from routing.trace_recorder import TraceRecorder, generated_lengths
from routing.virtual_cache import VirtualCache

__all__ = [
    "Rerouter",
    "RouterOutput",
    "RouterTap",
    "TraceRecorder",
    "VirtualCache",
    "generated_lengths",
    "router_order",
]
