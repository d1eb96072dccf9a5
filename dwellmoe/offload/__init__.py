"""Runs a MoE bigger than memory: its experts in a budgeted cache over device, RAM and disk. Moves bytes and
decides nothing: residency is `expert_cache`'s.
"""

from dwellmoe.offload.attach import attach, load_with_cache
from dwellmoe.offload.engine import Engine, engine_of
from dwellmoe.offload.expert_lora import take_expert_adapters, weightless_experts
from dwellmoe.offload.io.storage import ReadFault, Storage
from dwellmoe.offload.rerouting import LiveRerouting
from dwellmoe.offload.settings import EngineSettings

__all__ = [
    "Engine",
    "EngineSettings",
    "LiveRerouting",
    "ReadFault",
    "Storage",
    "attach",
    "engine_of",
    "load_with_cache",
    "take_expert_adapters",
    "weightless_experts",
]
