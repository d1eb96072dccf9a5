"""Elastic LoRA: picks layers by their ECR, trains LoRA in those alone, and estimates what that saves.

Every target is a full dotted name: PEFT ignores its own `layers_to_transform` for routers and parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import dwellmoe.families.adapter_names  # noqa: F401 - adapters load by their own names
from dwellmoe.errors import UserError
from dwellmoe.experts.stand_ins import layers_held_elsewhere, weightless_experts
from dwellmoe.families import LayerTargets, MoeLayer, lora_targets, target_names
from dwellmoe.locality.settings import ROUTER, check_trained_modules
from dwellmoe.locality.threshold import needs_profile, quantile
from dwellmoe.log import warn_once

AUTO = "auto"
BYTES_PER_TRAINABLE = 16
"""float32 weight, gradient and Adam's two moments."""


@dataclass(frozen=True)
class LoraShape:
    """Size of the adapters and which modules they sit on."""

    rank: int = 8
    alpha: int = 32
    targets: tuple[str, ...] = (AUTO,)
    """Names of modules that get LoRA; old names of experts mean the fused parameters."""
    extra: tuple[str, ...] = ()
    """Names of modules trained in full; only the router (`gate`) can be."""


def select_layers(layers: Sequence[MoeLayer], ecr_L: np.ndarray | None, threshold: str) -> list[MoeLayer]:
    """Layers whose ECR is below the threshold (`0.7`), or not above a quantile of the profile (`q50`).

    A threshold of 1 or more is every layer and needs no profile. Raises UserError for a malformed threshold
    and for one that selects nothing.
    """
    if not needs_profile(threshold):
        return list(layers)
    assert ecr_L is not None, "a threshold below 1 needs a profile"
    if threshold.startswith("q"):
        within_L = ecr_L <= np.quantile(ecr_L, quantile(threshold))
    else:
        within_L = ecr_L < float(threshold)
    chosen = [layer for layer, within in zip(layers, within_L, strict=True) if within]
    if not chosen:
        raise UserError(
            f"--daft_threshold {threshold} selects no layer: the ECR of the layers lies in "
            f"{ecr_L.min():.4f}..{ecr_L.max():.4f}; choose a larger threshold"
        )
    return chosen


def add_elastic_lora(model: nn.Module, layers: Sequence[MoeLayer], shape: LoraShape) -> PeftModel:
    """The model with LoRA in the given layers alone, the rest frozen. UserError for a wrong name."""
    config = lora_config(model, layers, shape)
    with weightless_experts(model, layers_held_elsewhere(model)):
        return get_peft_model(model, config)


def lora_config(model: nn.Module, layers: Sequence[MoeLayer], shape: LoraShape) -> LoraConfig:
    """PEFT's configuration, rank-stabilised (arXiv 2312.03732), with the names of each selected layer."""
    check_trained_modules(shape.targets, shape.extra)
    names = target_names(model, layers) if AUTO in shape.targets else list(shape.targets)
    targets = lora_targets(model, layers, names)
    full = _flat(target.routers for target in lora_targets(model, layers, shape.extra))
    full = full or _routers_without_lora(targets)
    linears = _flat(target.linears for target in targets)
    parameters = _flat(target.parameters for target in targets)
    if not full:
        parameters += _flat(target.router_weights for target in targets)
    if not linears and not parameters:
        raise UserError(
            "--target_modules names nothing: a fully trained gate works only beside at least one LoRA target"
        )
    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        use_rslora=True,
        lora_dropout=0.0,
        target_modules=linears,
        target_parameters=parameters or None,
        modules_to_save=full or None,
        task_type="CAUSAL_LM",
    )


def _routers_without_lora(targets: Sequence[LayerTargets]) -> list[str]:
    """The named routers that LoRA cannot train, which are trained in full, and says so."""
    routers = _flat(target.routers for target in targets if not target.router_weights)
    if routers:
        warn_once(f"'{routers[0]}' and the like cannot have LoRA: they are trained in full, as '{ROUTER}'")
    return routers


def _flat(groups) -> list[str]:
    return [name for group in groups for name in group]


class Savings(NamedTuple):
    """What is trained, and an estimate of what that saves against training every MoE layer."""

    trainable: int
    memory_saved_bytes: float
    time_saved_share: float


def trainable_count(model: nn.Module) -> int:
    """Trainable scalars of the model, ZeRO-3's shards counted whole."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)


def savings(trainable: int, selected: Sequence[MoeLayer], all_layers: Sequence[MoeLayer]) -> Savings:
    """Estimated from counts, taking all layers for alike.

    Time: a step is one part forward, one part gradients of activations (needed above the lowest selected
    layer) and one part gradients of weights (needed in the selected layers).
    """
    share = len(selected) / len(all_layers)
    above = 1 - min(layer.index for layer in selected) / len(all_layers)
    return Savings(
        trainable=trainable,
        memory_saved_bytes=trainable * (1 / share - 1) * BYTES_PER_TRAINABLE,
        time_saved_share=1 - (1 + above + share) / 3,
    )
