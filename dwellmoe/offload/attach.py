"""Puts the parts of an engine together, on a model that was loaded without its experts."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from dwellmoe.cache.budget import Budget
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache, prefill_cache_of
from dwellmoe.cache.tiers.tier_policy import PLACEMENT
from dwellmoe.cache.tiers.watermark.live import WatermarkDevice
from dwellmoe.experts.other_experts import run_through_interface
from dwellmoe.families import MoeLayer
from dwellmoe.offload.budgets import (
    EngineSizes,
    check_host_memory,
    decode_budget,
    ram_slots,
    sizes_of,
    within_model,
)
from dwellmoe.offload.cached_experts import CachedExperts
from dwellmoe.offload.engine import OWNER, Engine
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.experts_implementation import cached_experts_forward, run_experts_from
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.prefetch_predictors import make_live_predictor, make_prefetch_predictor
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.slots import SlotPool, Staging
from dwellmoe.offload.statistics import Statistics
from dwellmoe.settings.engine import EngineSettings


def attach(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    weights: ExpertWeights,
    storage: Storage,
    settings: EngineSettings,
) -> Engine:
    """The engine of a model that was loaded without its experts; the model runs through it from now on."""
    sizes = sizes_of(layers, weights, model.dtype)
    settings = within_model(settings, sizes)
    budget = decode_budget(sizes, settings)
    all_fit = budget.capacity == sizes.num_experts
    prefetch_budget = 0 if all_fit else settings.prefetch_budget
    statistics = Statistics()
    forward_pass = ForwardPass(model, statistics)
    placement_predictor, prefetch_predictor = None, None
    if settings.placement_predictor:
        placement_predictor = make_live_predictor(settings.placement_predictor, model, layers, forward_pass)
    if prefetch_budget:
        prefetch_predictor = make_prefetch_predictor(settings.prefetch_predictor, model, layers, forward_pass)
    live = _live_cache(sizes, budget, settings, all_fit, placement_predictor)
    slots = sizes.layers * budget.capacity + settings.prefill_buffer + prefetch_budget
    on_host = slots if model.device.type == "cpu" else 0
    check_host_memory((on_host + ram_slots(sizes, settings)) * sizes.slot_bytes, settings)
    readers = Readers(storage, settings.readers)
    slot_table = _slot_table(model, weights, live, slots, readers, settings, all_fit)
    prefetch = None
    if prefetch_predictor:
        prefetch = Prefetch(slot_table, readers, prefetch_predictor, prefetch_budget, statistics)
    cached_experts = CachedExperts(
        live=live,
        slot_table=slot_table,
        readers=readers,
        prefetch=prefetch,
        forward_pass=forward_pass,
        statistics=statistics,
    )
    run_experts_from(cached_experts, model, layers)
    for layer in layers:
        run_through_interface(model, layer, cached_experts_forward)
    engine = Engine(
        model=model,
        layers=list(layers),
        cached_experts=cached_experts,
        storage=storage,
        settings=settings,
        budget=budget,
    )
    setattr(model, OWNER, engine)
    return engine


def _live_cache(
    sizes: EngineSizes, budget: Budget, settings: EngineSettings, all_fit: bool, placement_predictor: Any
) -> LiveCache:
    shape: dict[str, Any] = {"layers": sizes.layers, "experts": sizes.num_experts}
    policy = None if all_fit else settings.prefill_policy or None
    prefill_cache = prefill_cache_of(sizes, policy, settings.prefill_buffer)
    in_ram = ram_slots(sizes, settings)
    if settings.decode_policy == PLACEMENT:
        placed: Any = WatermarkDevice(
            capacity=budget.capacity, ram_slots=in_ram, lookahead=placement_predictor, **shape
        )
        return LiveCache(PrefillDecodeCache(placed, settings.prefill_handoff), placed.ram)
    decode, ram = ExpertCache(settings.decode_policy, capacity=budget.capacity, **shape), None
    if in_ram:
        ram = ExpertCache(settings.decode_policy, capacity=in_ram, scope="global", **shape)
    return LiveCache(PrefillDecodeCache(decode, settings.prefill_handoff, prefill_cache), ram)


def _slot_table(
    model: PreTrainedModel,
    weights: ExpertWeights,
    live: LiveCache,
    slots: int,
    readers: Readers,
    settings: EngineSettings,
    all_fit: bool,
) -> SlotTable:
    device, dtype = model.device, model.dtype
    ram = None
    if live.ram is not None:  # one slot more, for an expert that comes down before another has gone up
        ram = SlotPool(weights.parts, live.ram.capacity + 1, dtype, torch.device("cpu"))
    return SlotTable(
        weights=weights,
        live=live,
        device=SlotPool(weights.parts, slots, dtype, device),
        ram=ram,
        staging=_staging(weights, settings, dtype, device),
        readers=readers,
        all_fit=all_fit,
    )


def _staging(
    weights: ExpertWeights, settings: EngineSettings, dtype: torch.dtype, device: torch.device
) -> Staging | None:
    """None where readers can fill the device slots themselves."""
    same_dtype = all(part.dtype == dtype for parts in weights.parts for part in parts)
    if device.type == "cpu" and same_dtype:
        return None
    slots = 2 * settings.readers + settings.prefetch_budget
    return Staging(weights.parts, max(weights.record_bytes), slots, pinned=device.type == "cuda")
