"""Takes the routed experts of a model from a GGUF file, if that was made from the same checkpoint.

Letters: L layers, O and I the output and input width of a matrix.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType
from torch import Tensor

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.q4_0 import Q4_0
from dwellmoe.experts.formats.q8_0 import Q8_0
from dwellmoe.families import MoeLayer
from dwellmoe.offload.conversion import ExpertReader, conversion_of
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.gguf_experts import locate_gguf_experts
from dwellmoe.offload.gguf_names import GgufNames
from dwellmoe.offload.io.gguf_file import GgufPart, all_tensors, first_rows, read_gguf
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.shards import Shards, StoredTensor
from dwellmoe.offload.io.storage import Storage

COMPARED = ("ffn_gate_inp.weight", "attn_v.weight", "attn_output.weight")
"""Ends of names of tensors beside the experts: no converter of llama.cpp changes the order of their rows."""
CHECKED_ROWS = 64
MOST_ERRORS = {Q8_0.name: 0.03, Q4_0.name: 0.2}
"""Of experts in these formats, |GGUF - checkpoint| / |checkpoint|: twice what quantising does."""
MOST_ERROR = 0.005
"""Of 16 and 32 bits."""


def experts_of_gguf(
    path: str, model: Any, layers: Sequence[MoeLayer], shards: Shards, own: ExpertWeights
) -> ExpertWeights:
    """Where the experts of `layers` lie in a GGUF file, or in all parts of a split one.

    shards, own  the checkpoint's tensors, and where its own experts lie

    Raises UserError for a file that is damaged or lacks parts, one of another model or revision, and types
    of which experts are not read.
    """
    files = read_gguf(path)
    names = GgufNames(files[0])
    _check_architecture(names, files[0], model.config.get_text_config())
    found = locate_gguf_experts(model, layers, files)
    for what, error, most in _differences(names, files, shards):
        _check(path, what, error, most)
    for what, error, most in _expert_differences(model, layers, own, found):
        _check(path, what, error, most)
    return found


def _check_architecture(names: GgufNames, first: GgufPart, config: Any) -> None:
    """UserError for sizes of another model, and for an architecture that is known by another model's name."""
    known = {_plain(name): name for name in MODEL_ARCH_NAMES.values()}
    expected = known.get(_plain(config.model_type), names.architecture)
    if not names.architecture.startswith(expected):  # nemotron_h_moe is a nemotron_h, too
        raise UserError(
            f"{first.path}: architecture '{names.architecture}', the checkpoint is of '{expected}'"
        )
    further = first.metadata.get(f"{names.architecture}.nextn_predict_layers", 0)
    width = first.metadata.get(f"{names.architecture}.embedding_length")
    sizes = {
        "layers": (names.layers - further, config.num_hidden_layers),
        "hidden size": (width, config.hidden_size),
    }
    for what, (given, wanted) in sizes.items():
        if given not in (None, wanted):
            raise UserError(f"{first.path}: {what} {given}, the checkpoint has {wanted}")


def _plain(name: str) -> str:
    return name.removesuffix("_text").replace("_", "").replace("-", "")


def _check(path: str, what: str, error: float, most: float) -> None:
    if not error <= most:  # NaN is refused, too
        raise UserError(
            f"{path}: {what} differs by {error:.1%} from the checkpoint's, of which quantising explains "
            f"{most:.1%} at most: the file was made from another model or revision"
        )


def _differences(
    names: GgufNames, files: list[GgufPart], shards: Shards
) -> Iterator[tuple[str, float, float]]:
    """`(name, error, most)` of tensors beside the experts."""
    tensors = {tensor.name: tensor for _, tensor in all_tensors(files)}
    for key, stored in shards.tensors.items():
        name = names.find(key)
        if name not in tensors or not name.endswith(COMPARED) or stored.dtype not in DTYPES:
            continue
        rows, tensor = first_rows(tensors[name], CHECKED_ROWS), tensors[name]
        if rows is None:
            continue
        expected = _first_rows(shards, stored, CHECKED_ROWS)
        if rows.shape != expected.shape:
            raise UserError(
                f"{files[0].path}: {name} has shape {tensor.shape.tolist()[::-1]}, '{key}' of the checkpoint "
                f"{list(stored.shape)}"
            )
        yield name, _error(torch.tensor(rows), expected), _most_error(tensor.tensor_type)


def _first_rows(shards: Shards, stored: StoredTensor, count: int) -> Tensor:
    """The first rows of a matrix of the checkpoint, float32."""
    rows = min(count, stored.shape[0])
    nbytes = stored.nbytes // stored.shape[0] * rows
    content = np.fromfile(shards.paths[stored.shard], np.uint8, nbytes, offset=stored.offset)
    return torch.from_numpy(content).view(DTYPES[stored.dtype]).view(rows, *stored.shape[1:]).float()


def _most_error(kind: GGMLQuantizationType) -> float:
    """What quantising may change; of other types than those of experts a coarse bound."""
    is_plain = kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
    return MOST_ERROR if is_plain else MOST_ERRORS.get(kind.name.lower(), 0.5)


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _expert_differences(
    model: Any, layers: Sequence[MoeLayer], own: ExpertWeights, found: ExpertWeights
) -> Iterator[tuple[str, float, float]]:
    """`(name, error, most)` of the matrices of each layer's first, middle and last expert."""
    with closing(Storage(own.shards.paths)) as own_storage, closing(Storage(found.shards.paths)) as storage:
        readers = ExpertReader(own, layers, own_storage), ExpertReader(found, layers, storage)
        for layer in layers:
            forms = [conversion_of(model, layer, weights, None) for weights in (own, found)]
            for expert in sorted({0, layer.num_experts // 2, layer.num_experts - 1}):
                tensors = [reader.read(layer.index, expert) for reader in readers]
                for name in forms[0].shapes_OI:
                    both = zip(forms, tensors, strict=True)
                    expected_OI, found_OI = (form.weight(name, each[name]).float() for form, each in both)
                    format = found.formats[layer.index].get(name)
                    most = MOST_ERRORS[format.name] if format else MOST_ERROR
                    yield f"{layer.experts}.{name}, expert {expert},", _error(found_OI, expected_OI), most
