"""Knows the loaded model that is measured and the size of its parts; does not know its adapters.

Letters: L MoE layers, E routed experts a layer.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from dwellmoe.families import MoeLayer
from dwellmoe.families.base import shape_of, unwrap
from dwellmoe.offload import LiveRerouting
from dwellmoe.routing import SimulatedCache


@dataclass(frozen=True)
class EvaluatedModel:
    """A model in evaluation mode with its tokenizer and the places of its MoE layers."""

    model: Any
    tokenizer: Any
    moe_layers: list[MoeLayer]
    name: str
    virtual: SimulatedCache | LiveRerouting | None = None
    """Where there is one, it routes: as if only what it holds were in memory, or by what an engine holds."""

    @property
    def pad_token_id(self) -> int:
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return pad if pad is not None else end if end is not None else 0

    @property
    def end_token_ids(self) -> list[int]:
        """What ends an answer: the model's own list, else the tokenizer's token."""
        found = getattr(self.model.generation_config, "eos_token_id", None)
        found = self.tokenizer.eos_token_id if found is None else found
        return [] if found is None else list(found) if isinstance(found, list | tuple) else [found]

    @cached_property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of one routed expert a layer, [L], as loaded; adapters are not counted."""
        return tuple(_expert_bytes(self.model, layer) for layer in self.moe_layers)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of everything but the routed experts: what every token needs and no cache evicts."""
        every = sum(_bytes(weight) for name, weight in self.model.named_parameters() if not _is_adapter(name))
        routed = sum(
            size * layer.num_experts for size, layer in zip(self.expert_bytes, self.moe_layers, strict=True)
        )
        return every - routed

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


def _expert_bytes(model: nn.Module, layer: MoeLayer) -> int:
    experts = unwrap(model.get_submodule(layer.experts))
    weights = [
        weight for weight in experts.parameters(recurse=False) if shape_of(weight)[:1] == (layer.num_experts,)
    ]
    return sum(_bytes(weight) for weight in weights) // layer.num_experts


def _bytes(weight: nn.Parameter) -> int:
    return weight.numel() * weight.element_size()


def _is_adapter(name: str) -> bool:
    return ".lora_" in name or ".modules_to_save." in name
