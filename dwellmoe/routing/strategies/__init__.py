"""The registry of routing strategies: every file of this folder but `base` and `bonus` defines `strategy`."""

from dwellmoe.registry import Registry
from dwellmoe.routing.strategies.base import RoutingStrategy

STRATEGIES = Registry("routing strategy", __name__, "strategy", skip=("base", "bonus"))


def load_strategy(spec: str) -> RoutingStrategy:
    """The strategy `name` or `name:option=value,...`. Raises UserError listing the names or options."""
    kind, options = STRATEGIES.parse(spec)
    return kind(**options)
