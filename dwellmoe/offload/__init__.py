"""Runs MoE models that are larger than memory: their experts are in a cache of limited size over device, RAM
and disk.

This folder moves bytes; the caches of dwellmoe/cache/ decide which.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dwellmoe.lazy import lazily

if TYPE_CHECKING:
    from dwellmoe.offload.engine import Engine, ExpertMemory, engine_of
    from dwellmoe.offload.expert_lora import run_expert_lora
    from dwellmoe.offload.io.storage import ReadFault, Storage
    from dwellmoe.offload.load import load_with_cache, offload
    from dwellmoe.offload.rerouting import LiveRerouting
    from dwellmoe.offload.statistics import HitCounts, PhaseCounts, Statistics
    from dwellmoe.settings.engine import EngineSettings

__all__ = [
    "Engine",
    "EngineSettings",
    "ExpertMemory",
    "HitCounts",
    "LiveRerouting",
    "PhaseCounts",
    "ReadFault",
    "Statistics",
    "Storage",
    "engine_of",
    "load_with_cache",
    "offload",
    "run_expert_lora",
]


__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(("Engine", "ExpertMemory", "engine_of", "EngineSettings"), "engine"),
        "run_expert_lora": "expert_lora",
        **dict.fromkeys(("ReadFault", "Storage"), "io.storage"),
        **dict.fromkeys(("load_with_cache", "offload"), "load"),
        "LiveRerouting": "rerouting",
        **dict.fromkeys(("HitCounts", "PhaseCounts", "Statistics"), "statistics"),
    },
)


class _CallableModule(ModuleType):
    """`dwellmoe.offload` is this folder and also a function: dwellmoe.offload("PATH", budget="25%")."""

    def __call__(self, path: str, **options: Any) -> Any:
        return self.offload(path, **options)


sys.modules[__name__].__class__ = _CallableModule
