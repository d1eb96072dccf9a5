"""Turns the budgets of the settings into slots, for a model of given sizes."""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

from dwellmoe.cache.budget import Budget, budget_of, layer_slots, parse_bytes
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.log import warn_once
from dwellmoe.offload.check_settings import naming
from dwellmoe.offload.expert_layout import ExpertLayout
from dwellmoe.offload.slots import bytes_of_slot
from dwellmoe.settings.engine import EngineSettings

DEFAULT = EngineSettings.expert_budget


class EngineSizes(NamedTuple):
    """The sizes of a model's experts in the engine's slots."""

    layers: int
    num_experts: int
    top_k: int
    expert_bytes: tuple[int, ...]
    """[L], of a record in its slot."""
    slot_bytes: int


def sizes_of(layers: Sequence[MoeLayer], layouts: Sequence[ExpertLayout]) -> EngineSizes:
    """`layouts`: of an expert of each layer in its slot.

    Raises UserError for a model whose layers differ in their number of experts or of chosen ones."""
    shapes = {(layer.num_experts, layer.top_k) for layer in layers}
    if len(shapes) != 1:
        raise UserError(f"a cache needs one (experts, chosen) for all layers, got {sorted(shapes)}")
    num_experts, top_k = shapes.pop()
    expert_bytes = tuple(layout.nbytes for layout in layouts)
    return EngineSizes(
        layers=len(layers),
        num_experts=num_experts,
        top_k=top_k,
        expert_bytes=expert_bytes,
        slot_bytes=bytes_of_slot(max(expert_bytes)),
    )


def within_model(settings: EngineSettings, sizes: EngineSizes) -> EngineSettings:
    """The settings without buffers of more slots than there are experts, which nothing could fill."""
    experts = sizes.layers * sizes.num_experts
    return dataclasses.replace(
        settings,
        prefill_buffer=min(settings.prefill_buffer, experts),
        prefetch_budget=min(settings.prefetch_budget, experts),
    )


def decode_budget(sizes: EngineSizes, settings: EngineSettings) -> Budget:
    """Slots a layer of the decode cache; the default share is at least the experts of one token.

    Raises UserError for a budget that cannot hold the experts of one token.
    """
    text, given = settings.expert_budget.strip(), f"--expert_budget {settings.expert_budget}"
    with naming("expert_budget", settings.expert_budget, _needed(sizes)):
        if text.endswith("B"):
            text = str(_slots_in(parse_bytes(text, "--expert_budget"), sizes, settings))
        elif text == DEFAULT and layer_slots(sizes._replace(top_k=0), text) < sizes.top_k:
            warn_once(f"{given} holds fewer experts than a token needs: {sizes.top_k} slots a layer are used")
            text = str(sizes.top_k)
        budget = budget_of(sizes, "layer", text)
    if budget.capacity < sizes.top_k:
        raise UserError(f"{given} leaves {budget.capacity} slots a layer{_needed(sizes)}")
    return budget


def _slots_in(nbytes: int, sizes: EngineSizes, settings: EngineSettings) -> int:
    """Slots of each layer's decode cache, when the buffers too are to fit into these bytes."""
    slots = nbytes // sizes.slot_bytes - settings.prefill_buffer - settings.prefetch_budget
    return max(0, min(sizes.num_experts, slots // sizes.layers))


def _needed(sizes: EngineSizes) -> str:
    return (
        f": a token needs {sizes.top_k} of {sizes.num_experts} experts; one slot in every layer takes "
        f"{sizes.layers * sizes.slot_bytes} bytes"
    )


def ram_slots(sizes: EngineSizes, settings: EngineSettings) -> int:
    """Slots of the RAM tier, for all layers together; 0 for none."""
    if not settings.ram_budget:
        return 0
    with naming("ram_budget", settings.ram_budget):
        slots = budget_of(sizes, "global", settings.ram_budget.strip()).capacity
        if not slots:
            raise UserError(f"holds no expert: one takes {max(sizes.expert_bytes)} bytes")
    return slots


def machine_memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_host_memory(nbytes: int, settings: EngineSettings) -> None:
    """Raises UserError for slots beyond the machine's memory; says which budget in bytes is beyond it."""
    machine_bytes = machine_memory_bytes()
    if nbytes > machine_bytes:
        raise UserError(
            f"the slots for experts take {nbytes:,} bytes, this machine has {machine_bytes:,}: lower "
            "--expert_budget, --ram_budget, --prefill_buffer or --prefetch_budget"
        )
    for name in ("expert_budget", "ram_budget"):
        text = getattr(settings, name).strip()
        if text.endswith("B") and parse_bytes(text, name) > machine_bytes:
            warn_once(
                f"--{name} {text} is more than this machine has ({machine_bytes:,} bytes): the slots for "
                f"experts take {nbytes:,}"
            )
