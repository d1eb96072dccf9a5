"""The registry of routing strategies: every file of this folder but `base` and `bonus` defines `strategy`."""

import functools
import importlib
import pkgutil

from dwellmoe.errors import unknown_name
from dwellmoe.registry import name_of, options_of
from dwellmoe.routing.strategies.base import RoutingStrategy

SHARED = ("base", "bonus")


def strategy_names() -> list[str]:
    """Names a user may give."""
    return sorted(file.name for file in pkgutil.iter_modules(__path__) if file.name not in SHARED)


@functools.cache
def load_strategy(spec: str) -> RoutingStrategy:
    """The strategy `name` or `name:option=value,...`. Raises UserError listing the names or options."""
    name = name_of(spec)
    if name not in strategy_names():
        raise unknown_name("routing strategy", name, strategy_names())
    kind = importlib.import_module(f"{__name__}.{name}").strategy
    return kind(**options_of("routing strategy", spec, kind))
