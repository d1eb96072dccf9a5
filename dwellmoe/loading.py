"""Loads a checkpoint, its tokenizer and its adapters, and checks that every weight was found."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

import dwellmoe.families.adapter_names  # noqa: F401 - adapters load by their own names
from dwellmoe.adapter_folder import ADAPTER_FILE, ADAPTER_WEIGHTS, BASE, check_adapter_folder
from dwellmoe.errors import UserError, first_line
from dwellmoe.experts import use_expert_lora
from dwellmoe.experts.formats import AS_STORED, parse_format
from dwellmoe.experts.stand_ins import layers_held_elsewhere, weightless_experts
from dwellmoe.families import MoeLayer
from dwellmoe.families.not_finite import check_finite
from dwellmoe.families.text_model import quantised_by, runs_whole, text_model_class
from dwellmoe.log import warn_once
from dwellmoe.offload import EngineSettings, engine_of, load_with_cache, run_expert_lora
from dwellmoe.offload.io.packed_index import is_packed
from dwellmoe.offload.io.shards import Shards, check_checkpoint, check_folder
from dwellmoe.offload.low_bit_loading import load_in_low_bits
from dwellmoe.offload.published_low_bits import FP8, MXFP4, other_form, published_form
from dwellmoe.offload.stream_loading import load_streamed
from dwellmoe.settings.model import ModelSettings

MALFORMED = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, AssertionError),
    *(ZeroDivisionError, StrictDataclassError),
)
"""What libraries raise for files, or entries of a configuration, that cannot be."""
PICKLE = (UnpicklingError, EOFError)
BAD_PICKLE = (
    "its pickled weights (.bin) are damaged, or hold more than tensors, which could run any program: have "
    "them saved as safetensors where they come from"
)
INTEGERS = ("I", "U", "BOOL")
"""Beginnings of safetensors' names of types."""
CPU = torch.device("cpu")


def load_tokenizer(settings: ModelSettings):
    """The checkpoint's tokenizer, with a padding token. Raises UserError where there is none."""
    check_folder(settings.model_name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            settings.model_name, trust_remote_code=settings.trust_remote_code
        )
    except MALFORMED as error:
        raise UserError(f"no tokenizer in '{settings.model_name}': {_said(error)}") from None
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"no tokenizer in '{settings.model_name}': its files are missing")
    if not tokenizer.encode("a 1", add_special_tokens=False):
        kind = type(tokenizer).__name__
        raise UserError(f"the tokenizer in '{settings.model_name}' ({kind}) makes no tokens of a text")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(settings: ModelSettings) -> PreTrainedConfig:
    """The checkpoint's configuration, without its weights. Raises UserError."""
    check_folder(settings.model_name)
    try:
        return AutoConfig.from_pretrained(settings.model_name, trust_remote_code=settings.trust_remote_code)
    except MALFORMED as error:
        raise UserError(f"checkpoint '{settings.model_name}' cannot be loaded: {_said(error)}") from None


def load_model(settings: ModelSettings) -> PreTrainedModel:
    """The checkpoint's causal language model, with every weight read from its files.

    Raises UserError for a checkpoint that is missing, truncated, does not fit its configuration, or needs
    code of its own.
    """
    if expert_format := settings.expert_format or (AS_STORED if is_packed(settings.model_name) else None):
        return load_in_low_bits(settings.model_name, expert_format, _dtype(settings.dtype), _device())
    shards = check_checkpoint(settings.model_name)
    quantised = quantised_by(load_config(settings))
    if shards and not quantised:
        _check_number_types(settings.model_name, shards)
    auto_class = _auto_class(settings)
    try:
        loaded: Any = auto_class.from_pretrained(
            settings.model_name,
            dtype=_dtype(settings.dtype),
            trust_remote_code=settings.trust_remote_code,
            experts_implementation=settings.experts_implementation,
            ignore_mismatched_sizes=True,  # `_check_loaded` refuses them and names the tensor
            output_loading_info=True,
        )
    except (*MALFORMED, RuntimeError, ImportError, SafetensorError, *PICKLE) as error:
        unpickled = isinstance(error, PICKLE) or "PytorchStreamReader" in str(error)
        why = BAD_PICKLE if unpickled else _said(error)
        raise UserError(f"checkpoint '{settings.model_name}' cannot be loaded: {why}") from None
    model, loading_info = loaded
    if quantised:
        vars(model).pop("_weight_conversions", None)  # transformers could not save what it dequantised
    if _dtype(settings.dtype) == torch.float32:
        model.float()  # transformers leaves some of the weights that it dequantised in bfloat16
    _check_loaded(settings.model_name, loading_info)
    check_finite(model.named_parameters(), f"checkpoint '{settings.model_name}'")
    if torch.cuda.is_available() and not is_deepspeed_zero3_enabled():
        model.to(_device())
    return model


def check_expert_format(settings: ModelSettings) -> None:
    """Raises UserError for a format that cannot be, and for a checkpoint quantised in a way that does not
    train.
    """
    parse_format(settings.expert_format or "")
    published_form(load_config(settings), settings.model_name)


def _device() -> torch.device:
    """The GPU of this rank, or the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else CPU


def _auto_class(settings: ModelSettings) -> Any:
    """The class of transformers that loads the checkpoint. Raises UserError for quantised experts, other than
    those that transformers dequantises, and for a multimodal model that is no language model of text.
    """
    config = load_config(settings)
    if (method := quantised_by(config)) not in ("", MXFP4, FP8):
        raise other_form(settings.model_name, method)
    if not runs_whole(config):
        return AutoModelForCausalLM
    text_model_class(config, settings.model_name)
    return AutoModelForImageTextToText


def load_model_with_cache(settings: ModelSettings, engine: EngineSettings) -> PreTrainedModel:
    """The same model with its routed experts in a cache over the checkpoint's files.

    `engine_of(model)` is the engine; close it when done. The dtype `auto` is the checkpoint's own here, on a
    CPU too, where it says that it is not that of a model in memory: float32 would take twice the memory and
    twice the copying. Raises UserError.
    """
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    given = settings.expert_format
    model = load_with_cache(settings.model_name, engine, dtype, _device(), expert_format=given)[0]
    in_memory = _dtype(settings.dtype)
    if in_memory not in ("auto", model.dtype):
        here, there = (str(kind).removeprefix("torch.") for kind in (model.dtype, in_memory))
        warn_once(
            f"--dtype auto: with experts in a cache this CPU computes in {here}, the checkpoint's type; with "
            f"all experts in memory it computes in {there}, as it does here with --dtype {there}"
        )
    return model


def load_streamed_model(settings: ModelSettings, expert_budget: str) -> PreTrainedModel:
    """The same model with its routed experts read from the checkpoint's files in every step of training.

    Raises UserError, also for a budget (see `load_streamed`) that cannot work.
    """
    dtype, device = _dtype(settings.dtype), _device()
    return load_streamed(settings.model_name, expert_budget, dtype, device, settings.expert_format)


def _dtype(name: str) -> str | torch.dtype:
    """`auto` is float32 on a CPU, which computes bfloat16 far slower."""
    if name == "auto":
        return "auto" if torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def _check_number_types(name: str, shards: Shards) -> None:
    """Raises UserError for weights that are stored as integers: they would be taken for the numbers meant."""
    for tensor, stored in shards.tensors.items():
        if tensor.endswith(".weight") and stored.dtype.startswith(INTEGERS):
            raise UserError(
                f"checkpoint '{name}': {tensor} holds integers ({stored.dtype}), though the configuration "
                "names no quantisation"
            )


def _check_loaded(name: str, loading_info: dict[str, Any]) -> None:
    """Raises UserError for weights that the files lack or that have another shape: they would be random."""
    misfit = f"checkpoint '{name}' does not fit its configuration:"
    wrong: list[Any] = sorted(loading_info.get("mismatched_keys") or ())
    if wrong:
        key, in_file, expected = wrong[0]
        shapes = f"{key} is {list(in_file)} in the file, {list(expected)} by the configuration"
        raise UserError(f"{misfit} {shapes}; {len(wrong)} tensors in all")
    for fault in ("missing_keys", "error_msgs"):
        if found := loading_info.get(fault):
            raise UserError(f"{misfit} {fault} {len(found)}, first: {min(map(str, found))}")
    if left_out := loading_info.get("unexpected_keys"):
        warn_once(
            f"checkpoint '{name}': {len(left_out)} tensors are left out, for the model of its configuration "
            f"has none of their names, first: {min(map(str, left_out))}"
        )


def load_adapters(model: PreTrainedModel, paths: Mapping[str, str], expert_lora: str = "sparse") -> PeftModel:
    """One model that holds all the adapters, by name. Raises UserError for a path without one that fits.

    expert_lora  how LoRA of experts is computed: `sparse` or `peft`; with the experts in a cache, `sparse`
    """
    engine = engine_of(model)
    layers = engine.layers if engine else layers_held_elsewhere(model)
    wrapped: PeftModel | None = None
    for name, path in paths.items():
        config = _adapter_config(path)
        try:
            with _experts_for_peft(model, layers):
                if wrapped is None:
                    wrapped = PeftModelForCausalLM(model, config, name)
                found = wrapped.load_adapter(path, adapter_name=name)
        except KeyError as error:
            raise UserError(f"adapter '{path}' lacks {error.args[0]}") from None
        except (ValueError, RuntimeError) as error:
            raise UserError(f"adapter '{path}' does not fit the model: {first_line(error)}") from None
        _check_all_found(path, found)
    assert wrapped is not None, "no adapter was given"
    if engine:
        run_expert_lora(model, layers)
    elif expert_lora == "sparse":
        use_expert_lora(wrapped)
    return wrapped.eval()


def _experts_for_peft(model: PreTrainedModel, layers: list[MoeLayer]) -> AbstractContextManager:
    return weightless_experts(model, layers) if layers else nullcontext()


def _adapter_config(path: str) -> PeftConfig:
    """The configuration of the adapter in a folder. Raises UserError where there is no readable one."""
    check_adapter_folder(path)
    folder, file = Path(path), ADAPTER_WEIGHTS
    try:
        weights = load_file(folder / file)
        file = ADAPTER_FILE
        config = PeftConfig.from_pretrained(path)
    except (*MALFORMED, SafetensorError) as error:
        raise UserError(f"'{folder / file}' cannot be read: {_said(error)}") from None
    check_finite(weights.items(), f"adapter '{path}'")
    return config


def _said(error: Exception) -> str:
    """The first line of what a library says of a file; of an unknown name, it says the name alone."""
    return f"unknown name {error}" if isinstance(error, KeyError) else first_line(error)


def _check_all_found(path: str, found: Any) -> None:
    """Raises UserError for tensors that adapter or model lack: they would have no effect."""
    for keys, fault in (
        (found.missing_keys, "lacks"),
        (found.unexpected_keys, "is of another model: it has"),
    ):
        if keys:
            raise UserError(f"adapter '{path}' {fault} {sorted(keys)[0]}, {len(keys)} tensors in all")


@contextmanager
def active_variant(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """Within the block the adapter of that name is on, or none for `base`."""
    if name == BASE and isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
        return
    if name != BASE:
        assert isinstance(model, PeftModel), f"variant '{name}' needs adapters"
        model.set_adapter(name, inference_mode=True)
    yield model


def quiet() -> None:
    """Keeps the libraries' notices off the terminal: they are about their own future, not the user's run."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
