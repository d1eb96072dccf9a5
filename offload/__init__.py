"""Runs a MoE bigger than memory: its experts in a budgeted cache over device, RAM and disk. Moves bytes and
decides nothing: residency is `expert_cache`'s.
"""

from config import EngineSettings
from offload.attach import attach, load_with_cache
from offload.engine import Engine, engine_of
from offload.expert_lora import take_expert_adapters, weightless_experts
from offload.rerouting import LiveRerouting
from offload.storage import ReadFault, Storage

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
