"""Finds the MoE layers of any model by their shape, and in a router the matrix that makes its logits.

Letters: L MoE layers, E experts, K chosen experts a token.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families.base import MoeFamily, MoeLayer, expert_tensors, shape_of, unwrap
from dwellmoe.families.registry import config_of, family_of
from dwellmoe.families.text_model import quantised_by

_MIXERS = ("self_attn", "attn", "attention", "mamba", "mixer", "conv")
"""Names of the module that mixes tokens beside the MoE block, tried in this order."""
_OTHER_MODALITIES = ("vision", "visual", "audio", "talker")
"""In the names of modules that no text passes; some of them are MoE blocks too (ERNIE-VL, dots3)."""
EXPECTED = "expected a router beside fused experts in a decoder layer"
_NAMES_OF_K = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")
"""Names that configurations have for K."""


def find_moe_layers(model: nn.Module, moe_module_name: str | None = None) -> list[MoeLayer]:
    """The MoE layers of `model` (plain, PEFT-wrapped or merged) in the order of its decoder layers.

    A MoE block is a module with a router (`gate` or `router`) and `experts` with fused 3-D parameters.
    `moe_module_name` is the attribute under which the decoder layer is expected to hold its block.
    Raises UserError for a dense model and for an expectation that does not hold.
    """
    family = family_of(model)
    found = [_describe(model, name, block, router, family) for name, block, router in _blocks(model, family)]
    if not found:
        raise UserError(f"{_title(model)} {_why_none(model)}")
    for layer in found:
        if layer["num_experts"] < 2:
            raise UserError(
                f"{_title(model)}: layer {layer['layer_id']} has a single expert: nothing is routed"
            )
        if not 1 <= layer["top_k"] <= layer["num_experts"]:
            raise UserError(
                f"{_title(model)}: layer {layer['layer_id']} chooses {layer['top_k']} of its "
                f"{layer['num_experts']} experts"
            )
    _check_block_name(found, moe_module_name)
    return [MoeLayer(index=index, **fields) for index, fields in enumerate(found)]


def _blocks(model: nn.Module, family: MoeFamily) -> Iterator[tuple[str, nn.Module, str]]:
    """`(name, block, name of the router in it)` of every MoE block."""
    for name, module in model.named_modules():
        if is_of_other_modality(name):
            continue
        router = next((child for child in family.router if child in module._modules), None)
        experts = module._modules.get(family.experts)
        if router and experts is not None and _is_fused(unwrap(experts)):
            yield name, module, router


def is_of_other_modality(name: str) -> bool:
    """Whether a module or tensor of that name serves images or sound, so that no text passes it."""
    return any(part in name for part in _OTHER_MODALITIES)


def _why_none(model: nn.Module) -> str:
    """Why no MoE layer was found: experts of another shape, quantised ones, or none at all."""
    config = config_of(model)
    if method := quantised_by(config) if config else "":
        return f"has no experts that can be used: its weights are quantised ({method})"
    kinds = (type(unwrap(module)).__name__ for module in model.modules())
    if other := next((kind for kind in kinds if re.search("Experts|M[oO]E$", kind)), None):
        return f"has experts of a shape that is not supported ({other}): {EXPECTED}"
    return f"has no MoE layer: {EXPECTED}"


def _is_fused(experts: nn.Module) -> bool:
    """Whether the weights of all experts lie in two 3-D parameters of this module."""
    names = expert_tensors(experts)
    return "down_proj" in names and ("gate_up_proj" in names or "up_proj" in names)


def _describe(
    model: nn.Module, name: str, block: nn.Module, router: str, family: MoeFamily
) -> dict[str, Any]:
    """The fields of a `MoeLayer` but its index."""
    parts = name.split(".")
    last_number = max(i for i, part in enumerate(parts) if part.isdigit())
    layer = ".".join(parts[: last_number + 1])
    return {
        "layer_id": int(parts[last_number]),
        "block": name,
        "router": f"{name}.{router}",
        "experts": f"{name}.{family.experts}",
        "attention": _mixer(model.get_submodule(layer), layer, name),
        "shared": tuple(_shared(model.get_submodule(layer), layer, block, name, family)),
        "num_experts": _num_experts(unwrap(block.get_submodule(family.experts))),
        "top_k": _top_k(model, block, unwrap(block.get_submodule(router))),
    }


def _mixer(layer: nn.Module, layer_name: str, block_name: str) -> str:
    """Name of the attention (or what stands in its place) of a decoder layer, '' when there is none."""
    names = [
        name
        for name, _ in layer.named_children()
        if "norm" not in name and f"{layer_name}.{name}" != block_name
    ]
    found = (name for mixer in _MIXERS for name in names if mixer in name)
    first = next(found, None)
    return f"{layer_name}.{first}" if first else ""


def _shared(
    layer: nn.Module, layer_name: str, block: nn.Module, block_name: str, family: MoeFamily
) -> Iterator[str]:
    """Names of the shared modules, inside the block and beside it."""
    for owner, module in {block_name: block, layer_name: layer}.items():
        for name, _ in module.named_children():
            if name.startswith("shared") or name in family.shared:
                yield f"{owner}.{name}"


def _num_experts(experts: nn.Module) -> int:
    """E, read off the fused weights: configurations disagree on its name."""
    shapes = map(shape_of, expert_tensors(experts).values())
    return max(shape[0] for shape in shapes if len(shape) == 3)


def _top_k(model: nn.Module, block: nn.Module, router: nn.Module) -> int:
    """K: an attribute of the router in nearly every family, of the block or the configuration in the rest."""
    for owner, names in ((router, ("top_k",)), (block, ("top_k",)), (_text_config(model), _NAMES_OF_K)):
        value = next(
            (getattr(owner, name) for name in names if isinstance(getattr(owner, name, None), int)), None
        )
        if value is not None:
            return value
    raise UserError(
        f"{_title(model)} does not say how many experts a token uses: looked for {', '.join(_NAMES_OF_K)}"
    )


def _text_config(model: nn.Module) -> Any:
    config = config_of(model)
    return None if config is None else config.get_text_config()


def _title(model: nn.Module) -> str:
    """How a message calls the model: its type and class."""
    config = config_of(model)
    return f"model '{config.model_type if config else 'unknown'}' ({type(unwrap(model)).__name__})"


def _check_block_name(found: list[dict[str, Any]], expected: str | None) -> None:
    """Refuses an expected attribute under which no decoder layer holds its MoE block."""
    names = {fields["block"].rpartition(".")[2] for fields in found}
    if expected is not None and expected not in names:
        raise UserError(
            f"no MoE block is called '{expected}' (moe_module_name): choose from {', '.join(sorted(names))}"
        )


def gate_matrix(model: nn.Module, layer: MoeLayer) -> tuple[list[nn.Module], nn.Parameter]:
    """The matrix of a router that gives the experts' logits, [E, D], and the modules that see its input; of
    these the one called last sees exactly what the matrix multiplies. Under PEFT it is the trained copy.

    Raises UserError for a router without exactly one such matrix.
    """
    router = _trained_copy(model.get_submodule(layer.router))
    found = [
        ([router, module], weight)
        for module in router.modules()
        for weight in module.parameters(recurse=False)
        if len(shape_of(weight)) == 2 and layer.num_experts <= shape_of(weight)[0] <= layer.num_experts + 1
    ]
    if len(found) != 1:
        raise UserError(
            f"router '{layer.router}' has {len(found)} matrices with a row an expert: "
            "--smooth_gates needs exactly one"
        )
    return found[0]


def _trained_copy(router: nn.Module) -> nn.Module:
    copies = router._modules.get("modules_to_save")
    return next(iter(copies.values())) if isinstance(copies, nn.ModuleDict) and len(copies) else router
