"""Knows when a router has collapsed; does not know how that is prevented."""

from collections.abc import Sequence

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer

LEAST_SETS = 2
"""A layer that uses fewer experts than so many tokens choose has no routing left."""


def refuse_collapse(layers: Sequence[MoeLayer], used_L: Sequence[int], tokens: int) -> None:
    """Raises UserError where one of `layers` used fewer than 2K experts over a validation set.

    `used_L`: distinct experts of every MoE layer of the model, by its index. Fewer tokens than experts prove
    nothing and pass.
    """
    for layer in layers:
        least = min(LEAST_SETS * layer.top_k, layer.num_experts)
        if used_L[layer.index] < least and tokens >= layer.num_experts:
            raise UserError(
                f"the router of layer {layer.layer_id} has collapsed: {used_L[layer.index]} of "
                f"{layer.num_experts} experts are used over the validation set, at least {least} "
                f"(2 x {layer.top_k}) must be. Checkpoints are kept. Lower the locality weight, or raise "
                "--aux_loss_alpha or --gate_kl_weight"
            )
