"""LoRA of attention as a GGUF adapter, which llama.cpp loads with `--lora` beside a GGUF with tuned routers.

It is written here and not by llama.cpp's converter, which takes the scale for alpha / rank where a
rank-stabilised adapter means alpha / sqrt(rank).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFWriter
from gguf.gguf_reader import ReaderTensor
from peft.tuners.lora import Linear
from torch import Tensor

from dwellmoe.errors import UserError
from dwellmoe.export.trained_adapter import ADAPTER, WRAPPED, Trained
from dwellmoe.files import replacing_path, writing
from dwellmoe.log import warn_once
from dwellmoe.offload.gguf_names import GgufNames
from dwellmoe.offload.io.gguf_file import GgufPart, all_tensors, first_rows

CHECKED_ROWS = 256
MOST_ERROR = 0.5
"""Of the rows' norm: quantising to two bits stays below it, rows in another order lie at 1.4."""


class LowRank(NamedTuple):
    """LoRA of one matrix: it adds `scaling * B A`."""

    name: str
    """Of the matrix in the GGUF."""
    a_RI: Tensor
    b_OR: Tensor
    scaling: float


def attention_lora(trained: Trained, parts: list[GgufPart]) -> list[LowRank]:
    """The adapter's LoRA of attention by the names of the GGUF. UserError where its matrices lie in another
    order there than in the base, as those of some architectures do.
    """
    names = GgufNames(parts[0])
    places = {tensor.name: tensor for _, tensor in all_tensors(parts)}
    found = []
    for full, module in _wrapped(trained):
        stored = trained.stored_names.get(f"{full}.weight")
        name = names.find(stored) if stored else None
        if stored is None or name not in places:
            raise UserError(f"{parts[0].path} has no tensor for '{full}.weight': its LoRA cannot be written")
        _check_order(places[name], module.base_layer.weight, stored)
        a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
        found.append(LowRank(name, a.detach(), b.detach(), module.scaling[ADAPTER]))
    return found


def _wrapped(trained: Trained) -> Iterator[tuple[str, Any]]:
    """Modules of attention with LoRA, by their names in the base."""
    for layer in trained.layers:
        if layer.attention:
            for name, module in trained.model.get_submodule(WRAPPED + layer.attention).named_modules():
                if isinstance(module, Linear):
                    yield f"{layer.attention}.{name}", module


def _check_order(tensor: ReaderTensor, weight: Tensor, stored: str) -> None:
    """UserError unless the first rows are those of the base, but for what quantising changed."""
    expected = weight.detach()[:CHECKED_ROWS].float().numpy()
    rows = first_rows(tensor, CHECKED_ROWS)
    if rows is None:
        warn_once(f"{tensor.name} ({tensor.tensor_type.name}) cannot be compared with '{stored}'")
        return
    most = MOST_ERROR * np.linalg.norm(expected)
    if rows.shape == expected.shape and np.linalg.norm(rows - expected) <= most:
        return
    raise UserError(
        f"{tensor.name} is not '{stored}' of the base, or holds its rows in another order: leave out "
        "--lora_out, and convert the merged model (dwellmoe export gguf)"
    )


def write_lora(path: str, architecture: str, factors: list[LowRank]) -> None:
    """Writes the adapter; llama.cpp computes its scale as alpha / rank."""
    alpha = factors[0].scaling * len(factors[0].a_RI)
    with writing(Path(path)), replacing_path(Path(path)) as beside:
        writer = GGUFWriter(beside, architecture)
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for each in factors:
            same_scale_b = each.b_OR * (each.scaling * len(each.a_RI) / alpha)
            writer.add_tensor(f"{each.name}.lora_a", each.a_RI.float().numpy())
            writer.add_tensor(f"{each.name}.lora_b", same_scale_b.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
