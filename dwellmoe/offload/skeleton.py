"""Loads a checkpoint without its routed experts, which are never allocated."""

from contextlib import suppress
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

from dwellmoe.errors import UserError, first_line
from dwellmoe.experts.other_experts import describe_experts
from dwellmoe.families import MoeLayer, find_moe_layers, is_of_other_modality
from dwellmoe.families.text_model import quantised_by, text_model_class
from dwellmoe.offload.expert_layout import NAMES
from dwellmoe.offload.io.shards import Shards, StoredTensor
from dwellmoe.offload.published_low_bits import (
    LowBitForm,
    forget_quantisation,
    other_form,
    with_fp8_dequantised,
)


def load_without_experts(
    model_name: str,
    shards: Shards,
    dtype: str | torch.dtype,
    device: torch.device,
    form: LowBitForm | None = None,
) -> tuple[PreTrainedModel, list[MoeLayer]]:
    """The causal language model in evaluation mode, with all weights but those of its routed experts, which
    are on the meta device.

    form  in which a checkpoint of low bits is published; without it, such a checkpoint is refused

    Raises UserError for a checkpoint that cannot be loaded or lacks weights of the rest of the model, and for
    experts that transformers does not run through its experts interface.
    """
    model_class, config = _text_model(model_name, form)
    try:
        skeleton = _skeleton_class(model_class)
        weights = _other_weights(shards, form, dtype if isinstance(dtype, torch.dtype) else torch.bfloat16)
        loaded: Any = skeleton.from_pretrained(
            None, config=config, dtype=dtype, state_dict=weights, output_loading_info=True
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint '{model_name}' cannot be loaded: {first_line(error)}") from None
    model, found = loaded
    for fault in ("missing_keys", "mismatched_keys", "error_msgs"):
        # ERNIE-VL keeps the experts of images among those of text, which are not read here.
        faults = [each for each in map(str, found.get(fault) or ()) if not is_of_other_modality(each)]
        if faults:
            raise UserError(
                f"checkpoint '{model_name}' does not fit its configuration: {fault} {len(faults)}, "
                f"first: {min(faults)}"
            )
    model.to(device)
    _set_generation(model, model_name)
    _put_back_shapes(model)
    return model.eval(), find_moe_layers(model)


def load_shapes(model_name: str, form: LowBitForm | None = None) -> tuple[nn.Module, list[MoeLayer]]:
    """The model without any weights (meta device); `form` as for `load_without_experts`."""
    model_class, config = _text_model(model_name, form)
    with torch.device("meta"):
        model = _skeleton_class(model_class)(config)
    _put_back_shapes(model)
    return model, find_moe_layers(model)


def _other_weights(shards: Shards, form: LowBitForm | None, fp8_to: torch.dtype) -> dict[str, Tensor]:
    """Every tensor but those of routed experts, in memory of its own: with mapped weights, a shard that
    shrinks while in use would end the process (SIGBUS). Of those in FP8 the weights that they stand for.
    """
    weights = {}
    for shard, path in enumerate(shards.paths):
        with safe_open(path, framework="pt", backend="pread") as file:
            for name, tensor in shards.tensors.items():
                if tensor.shard == shard and not is_routed_expert(name, tensor):
                    weights[name] = file.get_tensor(name)
    return with_fp8_dequantised(weights, form, fp8_to) if form else weights


def is_routed_expert(name: str, tensor: StoredTensor) -> bool:
    """Whether a tensor of a checkpoint is a weight of routed experts that text may pass."""
    _, within, rest = name.partition(".experts.")
    if is_of_other_modality(name):
        return False
    if within:
        return rest[0].isdigit() or len(tensor.shape) > 1
    return "moe." in name and len(tensor.shape) == 3  # all experts of Granite MoE and of Step 3.7


def _set_generation(model: Any, model_name: str) -> None:
    """Sampling settings and end tokens, from the checkpoint's generation_config.json if it has one."""
    with suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(model_name)


def _text_model(model_name: str, form: LowBitForm | None = None) -> tuple[Any, Any]:
    """The class of the causal language model and its configuration; of a multimodal one, its text part.

    Raises UserError for a checkpoint without such a model, and for a quantised one if no `form` is given.
    """
    try:
        config = AutoConfig.from_pretrained(model_name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint '{model_name}' cannot be loaded: {first_line(error)}") from None
    if form:
        forget_quantisation(config)
    elif method := quantised_by(config):
        raise other_form(model_name, method)
    return text_model_class(config, model_name)


def _skeleton_class(model_class: Any) -> Any:
    """A subclass whose instances lack the experts' parameters; `_put_back_shapes` makes an instance one of
    `model_class`. It keeps the name and module, by which transformers looks up how to load.
    """

    def init(self, config, *inputs, **options):
        model_class.__init__(self, config, *inputs, **options)
        self._expert_shapes = _take_shapes(self)
        self._whole_class = model_class

    unexpected = [*(model_class._keys_to_ignore_on_load_unexpected or ()), r"\.experts\."]
    body = {
        "__init__": init,
        "__module__": model_class.__module__,
        "__qualname__": model_class.__qualname__,
        "_keys_to_ignore_on_load_unexpected": unexpected,
    }
    return type(model_class.__name__, (model_class,), body)


def _take_shapes(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    shapes = {}
    for layer in find_moe_layers(model):
        experts: Any = model.get_submodule(layer.experts)
        describe_experts(experts)
        _check_seam(experts, layer)
        experts.full_shapes = {name: weight.shape for name, weight in experts.named_parameters(recurse=False)}
        shapes[layer.experts] = _shapes_of(experts)
        for name in shapes[layer.experts]:
            experts.register_parameter(name, None)
        block: Any = model.get_submodule(layer.block)
        # There is nothing to initialise: missing weights are refused. Qwen3-Omni's block initialises experts.
        experts._is_hf_initialized = block._is_hf_initialized = True
    _drop_experts_of_images(model)
    return shapes


def _drop_experts_of_images(model: nn.Module) -> None:
    """Takes the parameters of experts that no text passes out of the layers that text passes (ERNIE-VL), for
    checkpoints keep them among those of text, which are not read here.
    """
    for name, module in model.named_modules():
        if name.endswith(".vision_moe.experts"):
            module._is_hf_initialized = True  # type: ignore[assignment]
            for each in dict(module.named_parameters(recurse=False)):
                module.register_parameter(each, None)


def _shapes_of(experts: nn.Module) -> dict[str, Tensor]:
    """The parameters of the experts that compute: some have a first matrix that is never used."""
    parameters = dict(experts.named_parameters(recurse=False))
    computing = min(len(weight) for weight in parameters.values())
    return {name: weight[:computing] for name, weight in parameters.items()}


def _check_seam(experts: nn.Module, layer: MoeLayer) -> None:
    unknown = [name for name, _ in experts.named_parameters() if name not in NAMES and not _of_norm(name)]
    if unknown or not hasattr(experts, "has_gate"):
        what = (
            f"has a parameter '{unknown[0]}'" if unknown else "is not run by transformers' experts interface"
        )
        raise UserError(f"'{layer.experts}' ({type(experts).__name__}) {what}: it cannot run from a cache")


def _of_norm(name: str) -> bool:
    """Whether a parameter of experts belongs to the norm that all of them share, which stays in memory."""
    return name.startswith("post_expert_norm.")


def _put_back_shapes(model: Any) -> None:
    dtype = model.dtype
    for experts, parameters in model._expert_shapes.items():
        for name, shape in parameters.items():
            empty = torch.empty_like(shape, dtype=dtype, device="meta")
            setattr(model.get_submodule(experts), name, nn.Parameter(empty, requires_grad=False))
    model.__class__ = model._whole_class
    del model._expert_shapes, model._whole_class
