"""Puts the parts of an engine together, on a model that was loaded without its experts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
from dwellmoe.offload.expert_layout import ExpertLayout, check_formats, layouts_of
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.experts_implementation import cached_experts_forward, run_experts_from
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.prefetch_predictors import (
    PrefetchPredictor,
    make_live_predictor,
    make_prefetch_predictor,
)
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.slots import SlotPool, Staging
from dwellmoe.offload.statistics import Statistics
from dwellmoe.settings.engine import EngineSettings


class SlotPlan(NamedTuple):
    """The slots that the settings of an engine lead to, on a model of given sizes."""

    sizes: EngineSizes
    settings: EngineSettings
    budget: Budget
    layouts: Sequence[ExpertLayout]
    """[L]: of the experts as they are stored."""

    @property
    def all_fit(self) -> bool:
        """Whether the device has a slot for every expert."""
        return self.budget.capacity == self.sizes.num_experts

    @property
    def prefetch_budget(self) -> int:
        return 0 if self.all_fit else self.settings.prefetch_budget

    @property
    def slots(self) -> int:
        """On the device."""
        return self.sizes.layers * self.budget.capacity + self.settings.prefill_buffer + self.prefetch_budget


class Predictors(NamedTuple):
    """Of the experts that later layers of a running token request; None where nothing is predicted."""

    placement: Any
    prefetch: PrefetchPredictor | None


class Caches(NamedTuple):
    """What decides which experts are resident, the slots behind it, and what reads ahead into them."""

    live: LiveCache
    slot_table: SlotTable
    prefetch: Prefetch | None


def attach(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    weights: ExpertWeights,
    storage: Storage,
    settings: EngineSettings,
) -> Engine:
    """The engine of a model that was loaded without its experts; the model runs through it from now on."""
    plan = plan_slots(model, layers, weights, settings)
    statistics = Statistics()
    forward_pass = ForwardPass(model, statistics)
    predictors = make_predictors(model, layers, plan, forward_pass)
    check_slots(model, plan)
    readers = Readers(storage, settings.readers)
    caches = make_caches(model, plan, weights, predictors, readers, statistics)
    cached_experts = CachedExperts(
        **caches._asdict(), readers=readers, forward_pass=forward_pass, statistics=statistics
    )
    run_experts_from(cached_experts, model, layers)
    for layer in layers:
        run_through_interface(model, layer, cached_experts_forward)
    engine = Engine(
        model=model,
        layers=list(layers),
        cached_experts=cached_experts,
        storage=storage,
        settings=plan.settings,
        budget=plan.budget,
        predictors=predictors,
    )
    setattr(model, OWNER, engine)
    return engine


def plan_slots(
    model: PreTrainedModel, layers: Sequence[MoeLayer], weights: ExpertWeights, settings: EngineSettings
) -> SlotPlan:
    """Raises UserError for a budget that cannot work."""
    layouts = layouts_of(model, layers, weights)
    check_formats(layouts, model.device, model.dtype)
    sizes = sizes_of(layers, [layout.with_plain_weights_in(model.dtype) for layout in layouts])
    settings = within_model(settings, sizes)
    return SlotPlan(sizes, settings, decode_budget(sizes, settings), layouts)


def check_slots(model: PreTrainedModel, plan: SlotPlan) -> None:
    """Raises UserError for slots beyond the machine's memory."""
    on_host = plan.slots if model.device.type == "cpu" else 0
    slots = on_host + ram_slots(plan.sizes, plan.settings)
    check_host_memory(slots * plan.sizes.slot_bytes, plan.settings)


def make_predictors(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    plan: SlotPlan,
    forward_pass: ForwardPass,
    placement: Any = None,
) -> Predictors:
    """The predictors of the settings; `placement` is one of them that is there already. Raises UserError."""
    settings, prefetch = plan.settings, None
    if settings.placement_predictor and placement is None:
        placement = make_live_predictor(settings.placement_predictor, model, layers, forward_pass)
    if plan.prefetch_budget:
        prefetch = make_prefetch_predictor(settings.prefetch_predictor, model, layers, forward_pass)
    return Predictors(placement, prefetch)


def make_caches(
    model: PreTrainedModel,
    plan: SlotPlan,
    weights: ExpertWeights,
    predictors: Predictors,
    readers: Readers,
    statistics: Statistics,
) -> Caches:
    """Cold caches and the memory behind them."""
    live = _live_cache(plan.sizes, plan.budget, plan.settings, plan.all_fit, predictors.placement)
    slot_table = _slot_table(model, plan, weights, live, readers)
    prefetch = None
    if plan.prefetch_budget:
        assert predictors.prefetch is not None
        prefetch = Prefetch(slot_table, readers, predictors.prefetch, plan.prefetch_budget, statistics)
    return Caches(live, slot_table, prefetch)


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
    model: PreTrainedModel, plan: SlotPlan, weights: ExpertWeights, live: LiveCache, readers: Readers
) -> SlotTable:
    device, dtype = model.device, model.dtype
    in_slots = [layout.with_plain_weights_in(dtype) for layout in plan.layouts]
    ram = None
    if live.ram is not None:  # one slot more, for an expert that comes down before another has gone up
        ram = SlotPool(in_slots, live.ram.capacity + 1, dtype, torch.device("cpu"))
    return SlotTable(
        weights=weights,
        live=live,
        device=SlotPool(in_slots, plan.slots, dtype, device),
        ram=ram,
        staging=None if device.type == "cpu" and in_slots == plan.layouts else _staging(plan, device),
        readers=readers,
        all_fit=plan.all_fit,
    )


def _staging(plan: SlotPlan, device: torch.device) -> Staging:
    """For slots that readers cannot fill themselves."""
    slots = 2 * plan.settings.readers + plan.settings.prefetch_budget
    return Staging(plan.layouts, slots, pinned=device.type == "cuda")
