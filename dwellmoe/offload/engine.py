"""The engine behind a model whose experts are in a cache: its counts, memory, residents, reset, recording."""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from dwellmoe.cache.budget import Budget
from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.families import MoeLayer
from dwellmoe.offload.cached_experts import CachedExperts
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.live_trace import LiveTrace
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.statistics import HitCounts, Statistics
from dwellmoe.settings.engine import EngineSettings

OWNER = "expert_cache_engine"
"""Attribute of a model: its engine."""


class ExpertMemory(NamedTuple):
    """Bytes of all slots that the engine allocated, used or not."""

    device_bytes: int
    """The decode cache, the prefill buffer and the prefetch slots."""
    ram_bytes: int
    staging_bytes: int
    """Host memory between disk and slots of a GPU or of another type."""

    @property
    def total_bytes(self) -> int:
        return sum(self)


class Engine:
    """The expert cache behind one model. Close it when done, or use it as a `with` block.

    layers    the MoE layers of the model
    settings  as given; `budget` is the decode cache they lead to; `resize` changes both
    """

    def __init__(
        self,
        model: Any,
        layers: list[MoeLayer],
        cached_experts: CachedExperts,
        storage: Storage,
        settings: EngineSettings,
        budget: Budget,
        predictors: Any,
    ) -> None:
        self.name = str(model.config.model_type)
        self.layers, self.settings, self.budget = layers, settings, budget
        self.predictors = predictors
        self.cached_experts, self._storage = cached_experts, storage
        self._counts_at_reset = self._all_hit_counts()

    @property
    def _live(self) -> LiveCache:
        return self.cached_experts.live

    @property
    def _slot_table(self) -> SlotTable:
        return self.cached_experts.slot_table

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the reader threads and closes the checkpoint; the model cannot run any more."""
        self.cached_experts.forward_pass.close()
        self.cached_experts.readers.close()
        self._storage.close()

    @property
    def statistics(self) -> Statistics:
        """Tokens, seconds, loads and bytes of each phase since the last `reset` or `reset_counts`."""
        return self.cached_experts.statistics

    @property
    def hit_counts(self) -> HitCounts:
        """Hits and misses of the decode cache since the last `reset` or `reset_counts`."""
        return self._all_hit_counts().minus(self._counts_at_reset)

    @property
    def memory(self) -> ExpertMemory:
        """Memory of all slots: the most that the engine ever takes for experts."""
        table = self._slot_table
        pools = (table.device, table.ram, table.loads.staging)
        return ExpertMemory(*(0 if pool is None else pool.nbytes for pool in pools))

    @property
    def record_bytes(self) -> tuple[int, ...]:
        """[L]: bytes of one expert in a slot."""
        return self._slot_table.device.record_bytes

    @property
    def reads_per_expert(self) -> int:
        """Reads from the checkpoint that the most scattered expert takes; packed experts take one each."""
        return max(map(len, self._slot_table.weights.pieces))

    @property
    def in_prefill(self) -> bool:
        """Whether the running forward pass, or the last one, is prefill; True before the first."""
        return self.cached_experts.forward_pass.prefill

    def resident(self, layer: int) -> np.ndarray:
        """bool [E]: the experts of a layer that are in the decode cache."""
        return self._live.device.decode_cache.resident(layer)

    def on_device(self, layer: int) -> np.ndarray:
        """bool [E]: the experts of a layer that are in the decode cache or in the prefill buffer."""
        return self._live.on_device(layer)

    def in_ram(self, layer: int) -> np.ndarray:
        """bool [E]: the experts of a layer that are in the RAM tier."""
        return self._live.in_ram(layer)

    def memory_map(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [L, E] each: experts in the decode cache, and experts in the RAM tier."""
        layers = range(self._live.layers)
        return np.stack([*map(self.resident, layers)]), np.stack([*map(self.in_ram, layers)])

    @property
    def ram_slots(self) -> int:
        """Experts that the RAM tier holds at most, of all layers; 0 without one."""
        return 0 if self._live.ram is None else self._live.ram.capacity

    def loaded_on_device(self) -> np.ndarray:
        """bool [L, E]: the experts whose weights are in a device slot; between requests the same experts as
        `on_device`, apart from prefetches.
        """
        return self._slot_table.on_device()

    def loaded_in_ram(self) -> np.ndarray:
        """bool [L, E]: the experts whose weights are in a RAM slot; between requests the same as `in_ram`."""
        return self._slot_table.in_ram()

    def owns(self, weight: Tensor) -> bool:
        """Whether a parameter of the model has no memory of its own: it is on the meta device, or a view of
        the engine's slots.
        """
        slots = self._slot_table.device.memory
        return weight.is_meta or 0 <= weight.data_ptr() - slots.data_ptr() < slots.nbytes

    def reset(self) -> None:
        """Cold caches, and all counts back to zero."""
        self.cached_experts.empty()
        self.reset_counts()

    def reset_counts(self) -> None:
        """All counts back to zero; the caches keep their experts."""
        self.statistics.reset()
        self._counts_at_reset = self._all_hit_counts()

    def record(self) -> None:
        """Resets the engine, and records the requests to its caches from now on."""
        self.reset()
        self.cached_experts.recorder = self._new_recorder()

    def trace(self) -> RoutingTrace:
        """The requests since `record`. Raises UserError if there were none."""
        recorder = self.cached_experts.recorder or self._new_recorder()
        return recorder.trace(self.name, [layer.layer_id for layer in self.layers], self.record_bytes)

    def _new_recorder(self) -> LiveTrace:
        return LiveTrace(self._live.layers, self._live.experts)

    def go_on(self, counted: HitCounts) -> None:
        """The caches were replaced by others: counts go on from what was `counted`."""
        self._counts_at_reset = self._all_hit_counts().minus(counted)

    def fields(self) -> dict[str, Any]:
        """Settings, sizes and counts as plain numbers, for a report."""
        return {
            "settings": vars(self.settings),
            **self.budget.fields(),
            "expert_memory_bytes": self.memory.total_bytes,
            "decode_cache": self.hit_counts.fields(),
            **self.statistics.fields(),
        }

    def _all_hit_counts(self) -> HitCounts:
        return HitCounts(**self._live.device.decode_cache.counts())


def engine_of(model: nn.Module) -> Engine | None:
    """The engine behind a model, found through PEFT's wrappers too, or None for a model wholly in memory."""
    return next((getattr(module, OWNER) for module in model.modules() if hasattr(module, OWNER)), None)
