"""An adapter with LoRA one expert each: `experts.3.gate_proj.lora_A`, as vLLM and SGLang read it.

PEFT keeps the LoRA of all experts of a layer in one pair of tensors, for gate and up together; such an
adapter loads without effect elsewhere. Here each expert's part becomes LoRA of its own matrices, of the same
rank and with the same product.

Letters: R rank, I and O the input and output width of a matrix.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft.tuners.lora import ParamWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor

from dwellmoe.adapter_folder import ADAPTER_FILE, ADAPTER_WEIGHTS
from dwellmoe.base_model import BASE_FILE
from dwellmoe.errors import UserError
from dwellmoe.experts.peft_factors import factors_of
from dwellmoe.export.trained_adapter import ADAPTER, WRAPPED, Trained, part_of, say_lost
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap
from dwellmoe.files import give_usual_modes, written_whole
from dwellmoe.offload.io.packed_index import is_packed

HALVES = ("gate_proj", "up_proj")
FUSED = "gate_up_proj"
LORA = (".lora_A.weight", ".lora_B.weight")
ROUTERS_APART = (
    "serve it on the base with the tuned routers in it, which dwellmoe export router and dwellmoe apply make"
)


def export_per_expert(trained: Trained, out: str) -> int:
    """Writes the adapter into a folder and gives the number of its tensors; routers, which those programs do
    not adapt, are left out, and that is said. Raises UserError for an adapter without LoRA of experts.
    """
    if is_packed(trained.base.name):
        raise UserError(
            f"'{trained.base.name}' is packed and no longer says how its experts are called: name the "
            "checkpoint that was packed with --model_name"
        )
    config = json.loads((Path(trained.path) / ADAPTER_FILE).read_text(encoding="utf-8"))
    tensors = dict(_experts(trained))
    if not tensors:
        raise UserError(f"adapter '{trained.path}' has no LoRA of experts: other programs read it as it is")
    if patterns := [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]:
        raise UserError(f"adapter '{trained.path}': a {patterns[0]} cannot be carried over")
    tensors |= dict(_others(trained))
    say_lost(trained, {"experts", "attention", "other modules"}, ROUTERS_APART)
    names = {name.removesuffix(LORA[0]).removesuffix(LORA[1]).rpartition(".")[2] for name in tensors}
    changed = {"target_modules": sorted(names), "target_parameters": None, "modules_to_save": None}
    with written_whole(Path(out), last=ADAPTER_FILE) as folder:
        save_file({name: each.contiguous() for name, each in tensors.items()}, folder / ADAPTER_WEIGHTS)
        (folder / BASE_FILE).write_text(json.dumps(trained.base._asdict()))
        (folder / ADAPTER_FILE).write_text(json.dumps(config | changed, indent=2))
        give_usual_modes(folder)
    return len(tensors)


def _experts(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    for layer in trained.layers:
        module: Any = trained.model.get_submodule(WRAPPED + layer.experts)
        concatenated = getattr(unwrap(module), "is_concatenated", True)
        while isinstance(module, ParamWrapper):
            if ADAPTER in module.lora_A:
                yield from _of_parameter(trained, layer, module, concatenated)
            module = module.base_layer


def _of_parameter(
    trained: Trained, layer: MoeLayer, module: Any, concatenated: bool
) -> Iterator[tuple[str, Tensor]]:
    """LoRA of each expert's part of one fused parameter, in the scale of the adapter's configuration."""
    parameter = module.parameter_name
    a_ERI, b_ERO, scaling = factors_of(module, ADAPTER)
    same_scale = scaling / _scale(trained)
    names = HALVES if parameter == FUSED else (parameter,)
    modules = trained.expert_modules.get(f"{layer.experts}.{parameter}", [])
    if len(modules) != len(names) * layer.num_experts:
        modules = [
            f"{layer.experts}.{expert}.{name}" for name in names for expert in range(layer.num_experts)
        ]
    for half in range(len(names)):
        rows = _rows(b_ERO.shape[-1], half, len(names), concatenated)
        for expert in range(layer.num_experts):
            name = WRAPPED + modules[half * layer.num_experts + expert]
            yield name + LORA[0], a_ERI[expert].detach().clone()
            yield name + LORA[1], (b_ERO[expert][:, rows].T * same_scale).detach().clone()


def _rows(count: int, half: int, halves: int, concatenated: bool) -> slice:
    """The rows of gate or of up in a fused matrix, where they lie one behind the other or in turns."""
    each = count // halves
    return slice(half * each, (half + 1) * each) if concatenated else slice(half, None, halves)


def _scale(trained: Trained) -> float:
    """The scale of an adapter of the configuration's rank."""
    config: Any = trained.model.peft_config[ADAPTER]
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def _others(trained: Trained) -> Iterator[tuple[str, Tensor]]:
    """The adapter's other LoRA, by the names of the checkpoint. UserError for what is no plain LoRA."""
    for key, values in load_file(Path(trained.path) / ADAPTER_WEIGHTS).items():
        name = key.removeprefix(WRAPPED)
        if part_of(name, trained.layers) in ("routers", "experts"):
            continue
        ending = next((each for each in LORA if name.endswith(each)), None)
        if ending is None:
            raise UserError(f"adapter '{trained.path}': '{key}' is no LoRA: it cannot be carried over")
        weight = f"{name.removesuffix(ending)}.weight"
        stored = trained.stored_names.get(weight, weight)
        yield f"{WRAPPED}{stored.removesuffix('.weight')}{ending}", values
