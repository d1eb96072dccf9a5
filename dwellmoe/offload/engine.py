"""Knows an engine as its user sees it: what it takes, what it counted, what it recorded, how it is closed;
does not know how experts are served.
"""

from typing import Any

from torch import nn

from dwellmoe.cache.budget import Budget
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.families import MoeLayer
from dwellmoe.offload.cached_experts import CachedExperts
from dwellmoe.offload.expert_lora import ExpertAdapters
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.live_trace import LiveTrace
from dwellmoe.offload.settings import EngineSettings

OWNER = "expert_cache_engine"
"""Attribute of a model: its engine."""


class Engine:
    """The expert cache behind one model. A `with` block closes it."""

    def __init__(
        self,
        model: Any,
        layers: list[MoeLayer],
        cached_experts: CachedExperts,
        storage: Storage,
        settings: EngineSettings,
        budget: Budget,
    ) -> None:
        self.name = str(model.config.model_type)
        self.layers, self.cached_experts, self.storage = layers, cached_experts, storage
        self.settings, self.budget = settings, budget
        self.live, self.statistics = cached_experts.live, cached_experts.statistics
        self.adapters = ExpertAdapters()
        cached_experts.residents.merge = self.adapters.merge

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the readers and closes the checkpoint; the model cannot run any more."""
        self.cached_experts.forward_pass.close()
        self.cached_experts.readers.close()
        self.storage.close()

    def record(self) -> None:
        """From now on, `trace` knows what the caches are asked. Starts cold, as a replay does."""
        self.empty()
        self.cached_experts.recorder = LiveTrace(self.live.layers, self.live.experts)

    def trace(self) -> RoutingTrace:
        """What was asked since `record`. UserError where nothing was."""
        recorder = self.cached_experts.recorder or LiveTrace(self.live.layers, self.live.experts)
        layer_ids = [layer.layer_id for layer in self.layers]
        return recorder.trace(self.name, layer_ids, self.cached_experts.residents.device.record_bytes)

    def empty(self) -> None:
        """Back to cold caches."""
        self.cached_experts.residents.empty()
        if self.cached_experts.prefetch:
            self.cached_experts.prefetch.forget()

    def use_adapter(self, name: str | None) -> None:
        """The experts' LoRA of this name is merged into whatever is read from now on; None: none is. A change
        leaves the caches cold.
        """
        if name != self.adapters.active:
            self.adapters.active = name
            self.empty()

    @property
    def expert_memory_bytes(self) -> int:
        """Memory of all slots: what the engine can ever take for experts, buffers and RAM tier included."""
        residents = self.cached_experts.residents
        pools = (residents.device, residents.ram, residents.staging)
        return sum(pool.nbytes for pool in pools if pool is not None)

    def fields(self) -> dict[str, Any]:
        """Settings, sizes and counts as plain numbers. `decode_cache` is what the simulator counts."""
        counts = self.live.split.cache.counts()
        asked = counts["hits"] + counts["misses"]
        return {
            "settings": vars(self.settings),
            **self.budget.fields(),
            "expert_memory_bytes": self.expert_memory_bytes,
            "decode_cache": counts | {"hit_rate": counts["hits"] / asked if asked else 0.0},
            **self.statistics.fields(),
        }


def engine_of(model: nn.Module) -> Engine | None:
    """The engine behind a model, found through PEFT's wrappers, or None where all of it is in memory."""
    return next((getattr(module, OWNER) for module in model.modules() if hasattr(module, OWNER)), None)
