"""LoRA of routed experts beside their weights in the slots: PEFT's wrappers stay, and hand their factors down
to the experts that they wrap.
"""

from collections.abc import Sequence
from typing import Any

from peft.tuners.lora import ParamWrapper
from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.experts.peft_factors import bypass
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap


def run_expert_lora(model: nn.Module, layers: Sequence[MoeLayer]) -> None:
    """From now on LoRA of the routed experts of a model that PEFT wrapped is computed on the rows that each
    expert serves; what is active is PEFT's to say.

    Raises UserError for an adapter that trains experts in another way.
    """
    for layer in layers:
        wrapped: Any = model.get_submodule(layer.experts)
        module, experts = wrapped, unwrap(wrapped)
        while module is not experts:
            if not isinstance(module, ParamWrapper):
                raise UserError(
                    f"the adapter has whole experts ('{layer.experts}'): beside a cache only their LoRA runs"
                )
            module = module.base_layer
        bypass(wrapped)
