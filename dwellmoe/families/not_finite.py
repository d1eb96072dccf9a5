"""Names the weight, or else the layer, that makes a model's results NaN."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dwellmoe.errors import UserError


def refuse_nan(model: nn.Module, result: Tensor, inputs: Mapping[str, Any]) -> None:
    """UserError if a model's loss or logits hold NaN. It names the first weight that is not finite; if all in
    memory are, the first module whose output is NaN, found by running the model on `inputs` once more.
    """
    if not torch.isnan(result).any():
        return
    in_memory = ((name, weight) for name, weight in model.named_parameters() if not weight.is_meta)
    wrong = (name for name, weight in in_memory if not torch.isfinite(weight).all())
    if (name := next(wrong, None)) is not None:
        raise UserError(f"the model's results are NaN: its weight {name} holds NaN or infinite numbers")
    with torch.no_grad(), _watched(model) as found:
        model(**inputs)
    if found:
        raise UserError(
            f"the model's results are NaN from {found[0]} on: its weights on disk are, or numbers are beyond "
            f"the range of {next(model.parameters()).dtype}"
        )


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
