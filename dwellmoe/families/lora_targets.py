"""What the module names of a LoRA option mean in a MoE layer.

`attention` means every Linear module of the layer's token mixer.
Checkpoints keep `gate_proj`, `up_proj` and `down_proj` an expert; in memory all experts of a layer are two
fused parameters. The old names go on meaning the experts, and the shared experts' own Linear modules too.
PEFT 0.21.2 rewrites a *module* target that ends in one of them into the fused parameters of every layer, be
it a full name, so any other Linear of that name (a shared expert's) is named by
its weight: PEFT leaves *parameter* targets alone.
What no gradient reaches is no target: the indexers and compressors of sparse attention.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families.base import MoeLayer, expert_tensors, shape_of, unwrap
from dwellmoe.families.registry import family_of
from dwellmoe.log import warn_once

_FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
_EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")
_ROUTER = "gate"
_ATTENTION = "attention"
_WITHOUT_GRADIENT = ("indexer", "compressor")
"""Parts of sparse attention: an indexer only chooses tokens; a compressor does nothing in texts shorter than
its window, and holds an indexer."""


class LayerTargets(NamedTuple):
    """What a list of module names means in one MoE layer: full dotted names, nothing outside the layer."""

    linears: tuple[str, ...]
    """nn.Linear modules of the attention and the block: PEFT's `target_modules`."""
    parameters: tuple[str, ...]
    """Fused 3-D parameters of experts, weights of other shared experts: PEFT's `target_parameters`."""
    routers: tuple[str, ...]
    """Router modules."""
    router_weights: tuple[str, ...]
    """2-D parameters of those routers that LoRA can train: none where the router must be trained in full."""


def lora_targets(model: nn.Module, layers: Sequence[MoeLayer], names: Iterable[str]) -> list[LayerTargets]:
    """What `names` means in each of `layers`; a layer of a hybrid model may lack a name that another one has.

    Call it on the plain model, before PEFT wraps it. Raises UserError for a name that no layer has.
    """
    wanted = list(dict.fromkeys(names))
    tables = [_table(model, layer) for layer in layers]
    known = {name for table in tables for name in table}
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"no MoE layer has a module '{unknown[0]}': choose from {', '.join(sorted(known))}")
    _tell_fused(model, layers, wanted)
    return [_select(table, wanted) for table in tables]


def _tell_fused(model: nn.Module, layers: Iterable[MoeLayer], names: Sequence[str]) -> None:
    """Says so where a name of half a tensor trains the whole: `up_proj` alone also trains `gate_proj`."""
    for name in set(names) & {*_FUSED}:
        tensor = _FUSED[name]
        halves = {half for half, whole in _FUSED.items() if whole == tensor}
        if not {*halves, tensor} - {name} & {*names} and any(
            name in _fused(model, layer) for layer in layers
        ):
            (other,) = halves - {name}
            warn_once(f"'{name}' of the experts lies in one tensor with '{other}': {tensor} is trained whole")


def target_names(model: nn.Module, layers: Iterable[MoeLayer]) -> list[str]:
    """Every name that means something in one of the layers."""
    return sorted({name for layer in layers for name in _table(model, layer)})


def _select(table: dict[str, LayerTargets], names: Iterable[str]) -> LayerTargets:
    """The union of some rows, each target once and in order."""
    rows = [table[name] for name in names if name in table]
    return LayerTargets(
        *(tuple(dict.fromkeys(target for row in rows for target in row[kind])) for kind in range(4))
    )


def _table(model: nn.Module, layer: MoeLayer) -> dict[str, LayerTargets]:
    """Every name that means something in this layer, with what it means."""
    table = {name: _router_targets(model, layer) for name in (_ROUTER, layer.router.rpartition(".")[2])}
    linears = _linears(model, layer)
    fused = _fused(model, layer)
    for name in {*linears, *fused} - {*table}:
        table[name] = _plain_targets(linears.get(name, []), fused.get(name, []))
    mixer = [name for names in linears.values() for name in names if name.startswith(f"{layer.attention}.")]
    if layer.attention and mixer:
        table[_ATTENTION] = _plain_targets(mixer, [])
    return table


def _plain_targets(modules: Sequence[str], parameters: Sequence[str]) -> LayerTargets:
    """Those modules and parameters; a module of an expert's name by its weight."""
    by_weight = [module for module in modules if module.rpartition(".")[2] in _EXPERT_NAMES]
    linears = tuple(module for module in modules if module not in by_weight)
    return LayerTargets(linears, (*parameters, *(f"{module}.weight" for module in by_weight)), (), ())


def _router_targets(model: nn.Module, layer: MoeLayer) -> LayerTargets:
    if not family_of(model).lora_on_router:
        return LayerTargets((), (), (layer.router,), ())
    router = unwrap(model.get_submodule(layer.router))
    matrices = [name for name, weight in router.named_parameters() if _is_matrix(shape_of(weight))]
    return LayerTargets((), (), (layer.router,), tuple(f"{layer.router}.{name}" for name in matrices))


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and min(shape) > 1


def _fused(model: nn.Module, layer: MoeLayer) -> dict[str, list[str]]:
    """Old and new names of the fused parameters of the experts, routed and shared."""
    found: dict[str, list[str]] = {}
    for owner in (layer.experts, *layer.shared):
        experts = unwrap(model.get_submodule(owner))
        for name, weight in expert_tensors(experts).items():
            if len(shape_of(weight)) == 3:
                old = [old for old, new in _FUSED.items() if new == name]
                for option in (name, *old):
                    found.setdefault(option, []).append(f"{owner}.{name}")
    return found


def _linears(model: nn.Module, layer: MoeLayer) -> dict[str, list[str]]:
    """Last part of the name -> dotted names of the Linear modules in attention, shared experts and block."""
    found: dict[str, list[str]] = {}
    for owner in dict.fromkeys((layer.attention, *layer.shared, layer.block)):
        modules = model.get_submodule(owner).named_modules() if owner else ()
        for name, module in modules:
            full = f"{owner}.{name}" if name else owner
            if _is_linear(unwrap(module)) and not _is_left_out(full, layer):
                found.setdefault(full.rpartition(".")[2], []).append(full)
    return found


def _is_left_out(name: str, layer: MoeLayer) -> bool:
    """Whether a module belongs to the router, which has targets of its own, or gets no gradient."""
    return f"{name}.".startswith(f"{layer.router}.") or not {*_WITHOUT_GRADIENT}.isdisjoint(name.split("."))


def _is_linear(module: nn.Module) -> bool:
    """Whether PEFT may add a low-rank product to it: DeepSeek-V4's block-diagonal subclass takes none."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
