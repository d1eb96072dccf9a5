"""Estimates what leaving layers out saves; an estimate from counts, not a measurement."""

from collections.abc import Sequence

from torch import nn

from dwellmoe.families import MoeLayer

BYTES_A_TRAINABLE = 16
"""float32 weight, gradient and Adam's two moments."""


def trainable_count(model: nn.Module) -> int:
    """Trainable scalars of the model, ZeRO-3's shards counted whole."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)


def savings(trainable: int, selected: Sequence[MoeLayer], all_layers: Sequence[MoeLayer]) -> dict[str, float]:
    """Memory and time saved against training every MoE layer, layers being alike.

    Time: a step is one part forward, one part gradients of activations (needed above the lowest selected
    layer) and one part gradients of weights (needed in the selected layers).
    """
    share = len(selected) / len(all_layers)
    above = 1 - min(layer.index for layer in selected) / len(all_layers)
    return {
        "trainable": trainable,
        "memory_saved_bytes": trainable * (1 / share - 1) * BYTES_A_TRAINABLE,
        "time_saved_share": 1 - (1 + above + share) / 3,
    }
