"""Names the weight, or else the layer, that makes a model's results NaN; and weights that are not finite,
though no result may show it yet.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from dwellmoe.errors import UserError


def check_finite(weights: Iterable[tuple[str, Tensor]], what: str) -> None:
    """UserError, which begins with `what`, for the first weight that is not finite. It may be an expert that
    no token has chosen yet, so only its content tells.
    """
    wrong = next((name for name, weight in weights if not is_finite(weight)), None)
    if wrong is not None:
        raise UserError(f"{what}: its weight {wrong} holds NaN or infinite numbers")


def refuse_nan(model: nn.Module, result: Tensor, inputs: Mapping[str, Any]) -> None:
    """UserError if a model's loss or logits hold NaN. It names the first weight that is not finite; if all in
    memory are, the first module whose output is NaN, found by running the model on `inputs` once more.
    """
    if not torch.isnan(result).any():
        return
    check_finite(model.named_parameters(), "the model's results are NaN")
    if is_deepspeed_zero3_enabled():
        return  # to run it once more, every rank would have to
    with torch.no_grad(), _watched(model) as found:
        model(**inputs)
    if found:
        raise UserError(
            f"the model's results are NaN from {found[0]} on: its weights on disk are, or numbers are beyond "
            f"the range of {next(model.parameters()).dtype}"
        )


def is_finite(weight: Tensor) -> bool:
    """Whether a weight, or under ZeRO-3 this rank's shard of it, is finite. A vector may hold infinity: a
    router's bias of minus infinity switches an expert off.
    """
    values = getattr(weight, "ds_tensor", weight)
    if values.is_meta or not values.numel() or not values.is_floating_point() or values.itemsize < 2:
        return True
    extremes = torch.stack(torch.aminmax(values.detach()))  # NaN if any value is, and needs no copy
    is_vector = len(getattr(weight, "ds_shape", weight.shape)) < 2
    return bool((~torch.isnan(extremes) if is_vector else torch.isfinite(extremes)).all())


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """A list that gets the names of modules whose outputs hold NaN, in the order in which they run."""
    found: list[str] = []
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: _note(found, name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _note(found: list[str], name: str, output: Any) -> None:
    tensors = [part for part in (output if isinstance(output, tuple) else (output,)) if torch.is_tensor(part)]
    if any(torch.isnan(tensor).any() for tensor in tensors if tensor.is_floating_point()):
        found.append(name)
