"""An adapter on a model of shapes: its routers with their numbers, the rest as far as an export needs it.

Routed experts are never read, so that the adapter of a model larger than memory can be exported.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from dwellmoe.adapter_folder import ADAPTER_FILE, ADAPTER_WEIGHTS, check_adapter_folder
from dwellmoe.base_model import BaseModel, base_model, check_base_model, recorded_base
from dwellmoe.cache.tensor_file import read_header
from dwellmoe.errors import UserError
from dwellmoe.experts.stand_ins import weightless_experts
from dwellmoe.export.router_file import Router, TunedRouters, checksum
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap
from dwellmoe.files import is_missing_folder
from dwellmoe.loading import load_adapters
from dwellmoe.log import warn_once
from dwellmoe.offload.expert_weights import modules_of_experts, names_in_model
from dwellmoe.offload.io.shards import Shards, find_shards
from dwellmoe.offload.published_low_bits import form_of_checkpoint
from dwellmoe.offload.skeleton import load_without_experts

WRAPPED = "base_model.model."
"""What PEFT puts before the names of the model's modules."""
ADAPTER = "tuned"


class Trained(NamedTuple):
    """An adapter on its base."""

    path: str
    model: PeftModel
    """Holds no numbers of routed experts."""
    layers: list[MoeLayer]
    """As they are named in the base."""
    base: BaseModel
    shards: Shards
    stored_names: dict[str, str]
    """Parameter of the base -> its name in the checkpoint, where it is one tensor there."""
    expert_modules: dict[str, list[str]]
    """Fused parameter of the base -> modules of its experts in the checkpoint."""


def load_trained(adapter: str, model_name: str | None, allow_other_base: bool = False) -> Trained:
    """The adapter of a folder on its base, or on the base of that name. Raises UserError."""
    check_adapter_folder(adapter)
    model_name = model_name or base_name_of(adapter)
    check_base_model([adapter], model_name, allow_other_base)
    shards = find_shards(model_name)
    form = form_of_checkpoint(model_name, shards)
    model, layers = load_without_experts(model_name, shards, "auto", torch.device("cpu"), form)
    stored = {name: key for key, name, pattern in names_in_model(model, shards.tensors) if pattern is None}
    expert_modules = modules_of_experts(model, shards.tensors)
    for layer in layers:
        model.get_submodule(layer.router).float()
    with weightless_experts(model, layers):
        wrapped = load_adapters(model, {ADAPTER: adapter}, expert_lora="peft")
    return Trained(adapter, wrapped, layers, base_model(model_name), shards, stored, expert_modules)


def base_name_of(adapter: str) -> str:
    """The name of the base that the adapter's folder records."""
    record = recorded_base(adapter)
    config = json.loads((Path(adapter) / ADAPTER_FILE).read_text(encoding="utf-8"))
    name = record.name if record else config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"adapter '{adapter}' does not record its base model: give --model_name")
    if is_missing_folder(name):
        raise UserError(f"adapter '{adapter}': its base '{name}' is not there: give --model_name")
    return name


def merged_routers(trained: Trained) -> TunedRouters:
    """Every tensor of the routers, with the adapter's LoRA merged in float32. Raises UserError where the
    adapter changes none.

    Merges the routers of `trained.model` in place.
    """
    found = [router for layer in trained.layers for router in _routers_of(trained, layer)]
    if not any(router.is_changed for router in found):
        raise UserError(f"adapter '{trained.path}' changes no router: there is nothing to export")
    return TunedRouters(Path(trained.path), trained.base, found)


def _routers_of(trained: Trained, layer: MoeLayer) -> Iterator[Router]:
    module = trained.model.get_submodule(WRAPPED + layer.router)
    names = [name for name in unwrap(module).state_dict() if "lora_" not in name]
    names = list(dict.fromkeys(name.replace(".base_layer.", ".") for name in names))
    before = {name: _tensor(unwrap(module), name).float().clone() for name in names}
    for part in module.modules():
        if isinstance(part, BaseTunerLayer):
            part.merge()
    for name, base in before.items():
        full = f"{layer.router}.{name}"
        if full not in trained.stored_names:
            raise UserError(f"router tensor '{full}' is no tensor of the checkpoint '{trained.base.name}'")
        tuned = _tensor(_in_use(module), name).float()
        numbers = base.numpy()
        yield Router(trained.stored_names[full], tuned.numpy(), checksum(numbers), numbers)


def _in_use(module: nn.Module) -> nn.Module:
    """The module that computes inside PEFT's wrappers: the trained copy, or the one with LoRA merged."""
    if isinstance(module, ModulesToSaveWrapper):
        return module.modules_to_save[ADAPTER]
    return unwrap(module)


def _tensor(module: Any, name: str) -> Tensor:
    """A parameter or buffer inside of modules that PEFT may have wrapped."""
    *path, last = name.split(".")
    for part in path:
        module = _in_use(module._modules[part])
    return getattr(module, last).detach()


def trained_parts(trained: Trained) -> dict[str, int]:
    """What the adapter trains -> its tensors: routers, attention, experts, others."""
    header, _ = read_header(Path(trained.path) / ADAPTER_WEIGHTS)
    keys = [key.removeprefix(WRAPPED) for key in header if key != "__metadata__"]
    counts: dict[str, int] = {}
    for key in keys:
        part = part_of(key, trained.layers)
        counts[part] = counts.get(part, 0) + 1
    return counts


def part_of(key: str, layers: Iterable[MoeLayer]) -> str:
    """What a tensor of an adapter, by its name in the base, trains."""
    for layer in layers:
        for part, module in (
            ("routers", layer.router),
            ("attention", layer.attention),
            ("experts", layer.experts),
        ):
            if module and key.startswith(f"{module}."):
                return part
    return "other modules"


def say_lost(trained: Trained, carried: Iterable[str], advice: str) -> list[str]:
    """Says which trained parts an export does not carry, and gives them."""
    lost = [part for part in trained_parts(trained) if part not in {*carried}]
    if lost:
        warn_once(
            f"warning: adapter '{trained.path}' also trained {', '.join(lost)}, not carried over: the result "
            f"is not the model that was trained; {advice}"
        )
    return lost
