"""Turns the budgets of the settings into slots, for a model of given sizes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dwellmoe.cache.budget import Budget, budget_of, parse_bytes
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.slots import SlotPool
from dwellmoe.settings.engine import EngineSettings


class EngineSizes(NamedTuple):
    """The sizes of a model's experts in the engine's slots."""

    layers: int
    num_experts: int
    top_k: int
    expert_bytes: tuple[int, ...]
    """[L], of a record in its slot."""
    slot_bytes: int


def sizes_of(layers: Sequence[MoeLayer], weights: ExpertWeights, dtype: torch.dtype) -> EngineSizes:
    """Raises UserError for a model whose layers differ in their number of experts or of chosen ones."""
    shapes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(shapes) != 1:
        raise UserError(f"a cache needs one (experts, chosen) for all layers, got {sorted(shapes)}")
    num_experts, top_k = shapes.pop()
    pool = SlotPool(weights.parts, 0, dtype, torch.device("cpu"))
    return EngineSizes(
        layers=len(layers),
        num_experts=num_experts,
        top_k=top_k,
        expert_bytes=pool.record_bytes,
        slot_bytes=pool.slot_bytes,
    )


def decode_budget(sizes: EngineSizes, settings: EngineSettings) -> Budget:
    """Slots a layer of the decode cache. Raises UserError for a budget that cannot hold the experts of one
    token.
    """
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
        raise UserError(f"{given}: {error}{_needed(sizes)}") from None
    if budget.capacity < sizes.top_k:
        raise UserError(f"{given} leaves {budget.capacity} slots a layer{_needed(sizes)}")
    return budget


def _needed(sizes: EngineSizes) -> str:
    return (
        f": a token needs {sizes.top_k} of {sizes.num_experts} experts; one slot in every layer takes "
        f"{sizes.layers * sizes.slot_bytes} bytes"
    )


def ram_slots(sizes: EngineSizes, settings: EngineSettings) -> int:
    """Slots of the RAM tier, for all layers together; 0 for none."""
    if not settings.ram_budget:
        return 0
    try:
        return budget_of(sizes, "global", settings.ram_budget).capacity
    except UserError as error:
        raise UserError(f"--ram_budget {settings.ram_budget}: {error}") from None
