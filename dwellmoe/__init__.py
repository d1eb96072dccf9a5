"""DwellMoE makes Mixture-of-Experts language models fit small memories.

Public names are imported when they are first used: `import dwellmoe` itself loads neither torch nor numpy.
`RoutingTrace`, `replay` and `ExpertCache` need the extra `sim`; `record` and `offload` need `offload`;
`LocalityLoss` and `LocalityCallback` need `train`.
"""

TYPE_CHECKING = False  # nothing is imported here: until this is done, Ctrl-C ends a command in a traceback
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from dwellmoe.cache.expert_cache import ExpertCache as ExpertCache
    from dwellmoe.cache.replay.replay import replay as replay
    from dwellmoe.cache.trace import RoutingTrace as RoutingTrace
    from dwellmoe.locality.callback import LocalityCallback as LocalityCallback
    from dwellmoe.locality.loss import LocalityLoss as LocalityLoss
    from dwellmoe.offload import offload as offload
    from dwellmoe.routing.record import record as record

__version__ = "0.2.0"

_WHERE = {
    "RoutingTrace": ("dwellmoe.cache.trace", "sim"),
    "replay": ("dwellmoe.cache.replay.replay", "sim"),
    "ExpertCache": ("dwellmoe.cache.expert_cache", "sim"),
    "record": ("dwellmoe.routing.record", "offload"),
    "LocalityLoss": ("dwellmoe.locality.loss", "train"),
    "LocalityCallback": ("dwellmoe.locality.callback", "train"),
    "offload": ("dwellmoe.offload.load", "offload"),
}
"""Public name -> the module that defines it, and the extra that brings what the module imports."""

__all__ = [
    "ExpertCache",
    "LocalityCallback",
    "LocalityLoss",
    "RoutingTrace",
    "offload",
    "record",
    "register_family",
    "register_objective",
    "register_policy",
    "register_predictor",
    "register_strategy",
    "register_trace_format",
    "replay",
]


def __getattr__(name: str) -> "Any":
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'dwellmoe' has no attribute '{name}'")
    module, extra = _WHERE[name]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        from dwellmoe.errors import missing_package

        if (advice := missing_package(error, extra)) is None:
            raise
        raise ImportError(f"dwellmoe.{name}: {advice}") from error
    if name == "offload":  # the folder of the engine, which can be called: see dwellmoe/offload/__init__.py
        return importlib.import_module("dwellmoe.offload")
    return getattr(found, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register(kind: str, name: str) -> "Callable[[Any], Any]":
    from dwellmoe.registry import registry_of

    return registry_of(kind).register(name)


def register_policy(name: str) -> "Callable[[Any], Any]":
    """Decorator: adds an eviction policy under `name`, for `--decode_policy`, `replay` and `ExpertCache`."""
    return _register("policy", name)


def register_objective(name: str) -> "Callable[[Any], Any]":
    """Decorator: adds a locality objective under `name`, for training."""
    return _register("objective", name)


def register_strategy(name: str) -> "Callable[[Any], Any]":
    """Decorator: adds a routing strategy under `name`, for `--routing_strategy` and `--train_rerouting`."""
    return _register("strategy", name)


def register_predictor(name: str) -> "Callable[[Any], Any]":
    """Decorator: adds a predictor of expert use under `name`, for prefetch and watermark placement."""
    return _register("predictor", name)


def register_family(name: str) -> "Callable[[Any], Any]":
    """Adds a `MoeFamily`, which says where the routers and experts of some model types sit."""
    return _register("family", name)


def register_trace_format(name: str) -> "Callable[[Any], Any]":
    """Adds a trace format: a module or class with SUFFIXES, HINTS, recognise, read and write."""
    return _register("trace_format", name)
