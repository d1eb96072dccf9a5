"""Knows which matrix of a router gives the experts' logits, and which modules read what it multiplies."""

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families.base import MoeLayer, shape_of


def gate_matrix(model: nn.Module, layer: MoeLayer) -> tuple[list[nn.Module], nn.Parameter]:
    """The modules that see what the matrix multiplies, the one called last sees it best; and the matrix,
    [E, D]: of PEFT the trained copy.

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
            "--smooth_gates needs one linear map"
        )
    return found[0]


def _trained_copy(router: nn.Module) -> nn.Module:
    copies = router._modules.get("modules_to_save")
    return next(iter(copies.values())) if isinstance(copies, nn.ModuleDict) and len(copies) else router
