"""The loaded model that is evaluated, the size of its parts, and how its routing is changed.

Letters: L MoE layers, E routed experts a layer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from dwellmoe.cache.budget import Budget, ModelSizes, budget_of
from dwellmoe.errors import UserError
from dwellmoe.evaluation.rerouting import ReroutingSettings
from dwellmoe.experts.low_bit_linear import low_bit_bytes
from dwellmoe.families import MoeLayer, expert_bytes, expert_parameters
from dwellmoe.offload import LiveRerouting, engine_of
from dwellmoe.offload.check_settings import naming
from dwellmoe.routing import SimulatedCache


@dataclass(frozen=True)
class EvaluatedModel:
    """A model in evaluation mode with its tokenizer and its MoE layers."""

    model: Any
    tokenizer: Any
    moe_layers: list[MoeLayer]
    name: str
    rerouting: SimulatedCache | LiveRerouting | None = None
    """Chooses the experts by what a simulated cache, or an engine's, holds. None: the router's own choice."""

    @property
    def pad_token_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        end = self.tokenizer.eos_token_id
        return pad if pad is not None else end if end is not None else 0

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer: the model's own list, else the tokenizer's token."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if found is None else found
        return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]

    @cached_property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of one routed expert of each layer, [L], as loaded; adapters are not counted."""
        return tuple(expert_bytes(self.model, layer) for layer in self.moe_layers)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of everything but the routed experts: what every token needs and no cache evicts."""
        layers = self.moe_layers
        routed = {id(weight) for layer in layers for weight in expert_parameters(self.model, layer).values()}
        return low_bit_bytes(self.model) + sum(
            _bytes(weight)
            for name, weight in self.model.named_parameters()
            if id(weight) not in routed and not _is_adapter(name)
        )

    def fields(self) -> dict:
        """The model as a report states it."""
        first = self.moe_layers[0]
        return {
            "name": self.name,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "moe_layers": len(self.moe_layers),
            "layer_ids": [layer.layer_id for layer in self.moe_layers],
            "experts": first.num_experts,
            "chosen": first.top_k,
            "expert_bytes": list(self.expert_bytes),
            "resident_bytes": self.resident_bytes,
        }


def _bytes(weight: nn.Parameter) -> int:
    return weight.numel() * weight.element_size()


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name


def rerouting_budget(settings: ReroutingSettings, evaluated: EvaluatedModel) -> Budget:
    """The size of the decode cache. UserError for one that does not hold the experts of one token."""
    if engine := engine_of(evaluated.model):
        return engine.budget
    first = evaluated.moe_layers[0]
    sizes = ModelSizes(len(evaluated.moe_layers), first.num_experts, evaluated.expert_bytes)
    with naming("expert_budget", settings.budget):
        budget = budget_of(sizes, "layer", settings.budget)
    if budget.capacity < first.top_k:
        raise UserError(
            f"--expert_budget {settings.budget} leaves {budget.capacity} slots a layer: a token needs "
            f"{first.top_k} of {first.num_experts} experts"
        )
    return budget


def start_rerouting(settings: ReroutingSettings, evaluated: EvaluatedModel) -> SimulatedCache | LiveRerouting:
    """Re-routing by an empty simulated cache; or, where the model has an engine, by that one's cache."""
    if engine := engine_of(evaluated.model):
        return LiveRerouting(
            evaluated.model,
            evaluated.moe_layers,
            engine,
            settings.strategy,
            reroute_prefill=settings.reroute_prefill,
        )
    return SimulatedCache(
        evaluated.model,
        evaluated.moe_layers,
        settings.strategy,
        policy=settings.policy,
        capacity=rerouting_budget(settings, evaluated).capacity,
        prefill_handoff=settings.prefill_handoff,
        reroute_prefill=settings.reroute_prefill,
    )


def rerouting_fields(settings: ReroutingSettings, evaluated: EvaluatedModel) -> dict[str, Any]:
    """How the cache counts, as a report states it."""
    return {
        "scope": "layer",
        "access": "atomic",
        "phase": "decode",
        "start": "warm:prefill",
        "policy": settings.policy,
        "prefill_handoff": settings.prefill_handoff,
        "reset": "never",
        "residency": "engine" if engine_of(evaluated.model) else "simulated",
        **rerouting_budget(settings, evaluated).fields(),
        "reroute_prefill": settings.reroute_prefill,
    }
