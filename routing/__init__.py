"""Sees, and may change, the experts a router chooses."""

from routing.router_tap import RouterOutput, RouterTap, router_order

__all__ = ["RouterOutput", "RouterTap", "router_order"]
