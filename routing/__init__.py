"""Sees, and may change, the experts a router chooses."""

from routing.router_tap import RouterOutput, RouterTap, router_order
from routing.trace_recorder import TraceRecorder, generated_lengths

__all__ = ["RouterOutput", "RouterTap", "TraceRecorder", "generated_lengths", "router_order"]
