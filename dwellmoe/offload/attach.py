"""Knows how to put an engine together and onto a model; does not know how it runs.

Letters: L MoE layers, E routed experts a layer, K chosen a token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from dwellmoe.cache.budget import Budget, budget_of, parse_bytes
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.replay.replay_split import passing_cache
from dwellmoe.cache.tiers.live import PLACEMENT, LiveCache, live_policy
from dwellmoe.cache.tiers.prefill_decode import SHARED, PrefillDecodeCache, parse_prefill_handoff
from dwellmoe.cache.tiers.watermark.live import WatermarkDevice
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.offload.cached_experts import HANDLE, NAME, CachedExperts
from dwellmoe.offload.engine import OWNER, Engine
from dwellmoe.offload.expert_weights import ExpertWeights, locate_experts
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.offload.io.storage import BUFFERED, DIRECT, Storage
from dwellmoe.offload.pack import locate_packed
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.prefetch_predictors import (
    make_live_predictor,
    make_prefetch_predictor,
    validate_predictor,
)
from dwellmoe.offload.settings import EngineSettings
from dwellmoe.offload.skeleton import load_without_experts
from dwellmoe.offload.slot_table import SlotTable
from dwellmoe.offload.slots import SlotPool, Staging
from dwellmoe.offload.statistics import Statistics

STOCK = "grouped_mm"


class Sizes(NamedTuple):
    """What budgets are shares of."""

    layers: int
    num_experts: int
    top_k: int
    expert_bytes: tuple[int, ...]
    slot_bytes: int


def load_with_cache(
    model_name: str,
    settings: EngineSettings,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    storage: Storage | None = None,
) -> tuple[PreTrainedModel, Engine]:
    """The model with its experts in a cache over its own checkpoint, and the engine behind it.

    `model.generate` and `model(...)` work as always; close the engine when done, or use it as a `with` block.
    Raises UserError for settings or a checkpoint that cannot work.
    """
    check_settings(settings)
    shards = find_shards(model_name)
    model, layers = load_without_experts(model_name, shards, dtype, torch.device(device))
    if settings.packed:
        weights = locate_packed(model, layers, shards, Path(settings.packed))
    else:
        weights = locate_experts(model, layers, shards)
    storage = storage or Storage(weights.shards.paths, settings.io)
    return model, attach(model, layers, weights, storage, settings)


def check_settings(settings: EngineSettings) -> None:
    """Everything that can be wrong before a model is looked at. Raises UserError."""
    live_policy(settings.decode_policy, "decode_policy")
    if settings.prefill_policy:
        live_policy(settings.prefill_policy, "prefill_policy")
    rule, _ = parse_prefill_handoff(settings.prefill_handoff)
    if settings.decode_policy == PLACEMENT and (settings.prefill_policy or rule == SHARED):
        raise UserError("--decode_policy placement: leave out --prefill_policy and --prefill_handoff shared")
    if settings.io not in (DIRECT, BUFFERED):
        raise UserError(f"--io {settings.io}: choose from {DIRECT}, {BUFFERED}")
    validate_predictor(settings.prefetch_predictor)
    if settings.placement_predictor:
        validate_predictor(settings.placement_predictor, "placement_predictor")
        if settings.decode_policy != PLACEMENT:
            raise UserError("--placement_predictor has no effect without --decode_policy placement")
    least = {"readers": 1, "prefill_buffer": 1, "prefetch_budget": 0}
    for name, smallest in least.items():
        if getattr(settings, name) < smallest:
            raise UserError(f"--{name} {getattr(settings, name)}: must be at least {smallest}")


def attach(
    model: PreTrainedModel,
    layers: Sequence[MoeLayer],
    weights: ExpertWeights,
    storage: Storage,
    settings: EngineSettings,
) -> Engine:
    """An engine on a model that was loaded without its experts."""
    dtype, device = model.dtype, model.device
    sizes = _sizes(layers, weights, dtype)
    budget = _budget(sizes, settings)
    at_home = budget.capacity == sizes.num_experts
    statistics = Statistics()
    forward_pass = ForwardPass(model, statistics)
    placement_predictor, prefetch_predictor = None, None
    if settings.placement_predictor:
        placement_predictor = make_live_predictor(settings.placement_predictor, model, layers, forward_pass)
    ahead = 0 if at_home else settings.prefetch_budget
    if ahead:
        prefetch_predictor = make_prefetch_predictor(settings.prefetch_predictor, model, layers, forward_pass)
    live = _live_cache(sizes, budget, settings, at_home, placement_predictor)
    cached = sizes.layers * budget.capacity
    device_pool = SlotPool(weights.parts, cached + settings.prefill_buffer + ahead, dtype, device)
    ram_pool = None
    if live.ram is not None:  # one slot more: experts change places through it
        ram_pool = SlotPool(weights.parts, live.ram.capacity + 1, dtype, torch.device("cpu"))
    readers = Readers(storage, settings.readers)
    staging = _staging(weights, settings, dtype, device)
    residents = SlotTable(weights, live, device_pool, ram_pool, staging, readers, at_home)
    prefetch = (
        Prefetch(residents, readers, prefetch_predictor, ahead, statistics) if prefetch_predictor else None
    )
    cached_experts = CachedExperts(live, residents, readers, prefetch, forward_pass, statistics, STOCK)
    _switch_on(model, layers, cached_experts, at_home)
    engine = Engine(model, list(layers), cached_experts, storage, settings, budget)
    setattr(model, OWNER, engine)
    return engine


def _sizes(layers: Sequence[MoeLayer], weights: ExpertWeights, dtype: torch.dtype) -> Sizes:
    shapes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(shapes) != 1:
        raise UserError(f"a cache needs one (experts, chosen) for all layers, got {sorted(shapes)}")
    num_experts, top_k = shapes.pop()
    pool = SlotPool(weights.parts, 0, dtype, torch.device("cpu"))
    return Sizes(len(layers), num_experts, top_k, pool.record_bytes, pool.slot_bytes)


def _budget(sizes: Sizes, settings: EngineSettings) -> Budget:
    """Slots a layer of the decode cache."""
    text, given = settings.expert_budget.strip(), f"--expert_budget {settings.expert_budget}"
    if not text:
        raise UserError(f"{given}: give slots (8), percent (25%) or bytes (6GiB)")
    try:
        if text.endswith("B"):
            slots = parse_bytes(text, "--expert_budget") // sizes.slot_bytes
            slots -= settings.prefill_buffer + settings.prefetch_budget
            text = str(max(0, min(sizes.num_experts, slots // sizes.layers)))
        budget = budget_of(sizes, "layer", text)
    except UserError as error:
        raise UserError(f"{given}: {error}{_least(sizes)}") from None
    if budget.capacity < sizes.top_k:
        raise UserError(f"{given} leaves {budget.capacity} slots a layer{_least(sizes)}")
    return budget


def _least(sizes: Sizes) -> str:
    return (
        f": a token needs {sizes.top_k} of {sizes.num_experts} experts; a slot in every layer takes "
        f"{sizes.layers * sizes.slot_bytes} bytes"
    )


def _live_cache(
    sizes: Sizes, budget: Budget, settings: EngineSettings, at_home: bool, placement_predictor: Any
) -> LiveCache:
    shape: dict[str, Any] = {"layers": sizes.layers, "experts": sizes.num_experts}
    policy = None if at_home else settings.prefill_policy or None
    passing = passing_cache(sizes, policy, settings.prefill_buffer)
    ram_slots = _ram_slots(sizes, settings)
    if settings.decode_policy == PLACEMENT:
        placed: Any = WatermarkDevice(
            capacity=budget.capacity, ram_slots=ram_slots, ahead=placement_predictor, **shape
        )
        return LiveCache(PrefillDecodeCache(placed, settings.prefill_handoff), placed.ram)
    decode, ram = ExpertCache(settings.decode_policy, capacity=budget.capacity, **shape), None
    if ram_slots:
        ram = ExpertCache(settings.decode_policy, capacity=ram_slots, scope="global", **shape)
    return LiveCache(PrefillDecodeCache(decode, settings.prefill_handoff, passing), ram)


def _ram_slots(sizes: Sizes, settings: EngineSettings) -> int:
    if not settings.ram_budget:
        return 0
    try:
        return budget_of(sizes, "global", settings.ram_budget).capacity
    except UserError as error:
        raise UserError(f"--ram_budget {settings.ram_budget}: {error}") from None


def _staging(
    weights: ExpertWeights, settings: EngineSettings, dtype: torch.dtype, device: torch.device
) -> Staging | None:
    """Needed where a record cannot be read into its slot as it is."""
    straight = all(part.dtype == dtype for parts in weights.parts for part in parts)
    if device.type == "cpu" and straight:
        return None
    places = 2 * settings.readers + settings.prefetch_budget
    return Staging(weights.parts, max(weights.record_bytes), places, pinned=device.type == "cuda")


def _switch_on(model: Any, layers: Sequence[MoeLayer], cached_experts: CachedExperts, at_home: bool) -> None:
    pool = cached_experts.residents.device
    for layer in layers:
        experts: Any = model.get_submodule(layer.experts)
        setattr(experts, HANDLE, (cached_experts, layer.index))
        if at_home:
            first = layer.index * layer.num_experts
            for name, stacked in pool.stacked(first, layer.num_experts, layer.index).items():
                setattr(experts, name, nn.Parameter(stacked, requires_grad=False))
    model.set_experts_implementation(NAME)
