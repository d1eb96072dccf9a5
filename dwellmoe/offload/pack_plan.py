"""What `dwellmoe pack` is going to write: files, tensors, and the layout of each record."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache.tensor_file import header_of
from dwellmoe.errors import needs
from dwellmoe.experts.formats import parse_format, text_of
from dwellmoe.experts.low_bits import RecordLayout
from dwellmoe.families import MoeLayer
from dwellmoe.log import warn_once
from dwellmoe.offload.conversion import Conversion, conversion_of
from dwellmoe.offload.expert_weights import ExpertWeights, locate_experts, names_in_model
from dwellmoe.offload.io.fingerprint import weights_fingerprint
from dwellmoe.offload.io.memory import PAGE_BYTES, pages
from dwellmoe.offload.io.packed_index import VERSION
from dwellmoe.offload.io.shards import Shards, StoredTensor, find_shards
from dwellmoe.offload.packed import experts_fingerprint, packed_layout, records_name
from dwellmoe.offload.published_low_bits import form_of_checkpoint
from dwellmoe.offload.skeleton import is_routed_expert, load_shapes


class LayerPlan(NamedTuple):
    """The records of one layer."""

    layer: MoeLayer
    conversion: Conversion
    layout: RecordLayout
    """Of a record, biases included."""

    @property
    def stride(self) -> int:
        """Bytes from one record to the next."""
        return pages(self.layout.nbytes)

    @property
    def header(self) -> bytes:
        """Of the file of the records, which begin at a page."""
        experts = self.layer.num_experts
        entry = ("U8", (experts, self.stride), experts * self.stride)
        return header_of({records_name(self.layer): entry}, {"format": "pt"}, PAGE_BYTES)

    @property
    def file_bytes(self) -> int:
        return len(self.header) + self.layer.num_experts * self.stride


class PackPlan(NamedTuple):
    """A checkpoint, and what is to be made of it."""

    model_name: str
    format: str
    """With all its options."""
    shards: Shards
    weights: ExpertWeights
    """Where the experts lie that are packed: in the checkpoint, or in a GGUF file."""
    own_experts: ExpertWeights
    """Where those of the checkpoint lie."""
    source: str
    """Fingerprint of the checkpoint's weights."""
    layers: tuple[LayerPlan, ...]
    others: dict[str, StoredTensor]
    """Every tensor that is kept as it is, in the order in which it is written."""

    @property
    def names(self) -> list[str]:
        """Of the files: first that of the other tensors, then one a layer."""
        count = 1 + len(self.layers)
        return [f"packed-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

    @property
    def identity(self) -> str:
        """What an interrupted run must have in common with this one."""
        return json.dumps({"version": VERSION, "format": self.format, "source": self.source})

    @property
    def file_bytes(self) -> list[int]:
        """Of the files with these `names`."""
        others = len(self.others_header()) + sum(tensor.nbytes for tensor in self.others.values())
        return [others, *(layer.file_bytes for layer in self.layers)]

    def others_header(self) -> bytes:
        entries = {name: (each.dtype, each.shape, each.nbytes) for name, each in self.others.items()}
        return header_of(entries, {"format": "pt"})


def plan_pack(model_name: str, format: str, gguf: str | None = None) -> PackPlan:
    """Raises UserError for an unknown format, a checkpoint that cannot be packed, a GGUF of another model."""
    quantising = parse_format(format)
    shards = find_shards(model_name)
    form = form_of_checkpoint(model_name, shards)
    model, layers = load_shapes(model_name, form)
    weights = own_experts = locate_experts(model, layers, shards, form)
    if gguf is not None:
        weights = _experts_of_gguf(gguf, model, layers, shards, own_experts)
    plans = []
    for layer in layers:
        conversion = conversion_of(model, layer, weights, quantising)
        names = [
            *conversion.shapes_OI,
            *(name for name in conversion.types if name not in conversion.shapes_OI),
        ]
        formats = {name: conversion.format_of(name) for name in names}
        plans.append(LayerPlan(layer, conversion, packed_layout(model, layer, formats)))
    return PackPlan(
        model_name=model_name,
        format=text_of(quantising) if gguf is None else f"gguf:{experts_fingerprint(weights)}",
        shards=shards,
        weights=weights,
        own_experts=own_experts,
        source=weights_fingerprint(model_name),
        layers=tuple(plans),
        others=_others(shards, model, layers),
    )


def _experts_of_gguf(
    gguf: str, model: Any, layers: Sequence[MoeLayer], shards: Shards, own_experts: ExpertWeights
) -> ExpertWeights:
    with needs("export"):
        from dwellmoe.offload.gguf_model import experts_of_gguf
    return experts_of_gguf(gguf, model, layers, shards, own_experts)


def _others(shards: Shards, model: Any, layers: Sequence[MoeLayer]) -> dict[str, StoredTensor]:
    """What is kept as it is; experts that the model does not run are left out, and that is said."""
    kept = {name: each for name, each in shards.tensors.items() if not is_routed_expert(name, each)}
    runs = tuple(f"{layer.experts}." for layer in layers)
    routed = names_in_model(model, shards.tensors.keys() - kept.keys())
    if idle := [key for key, name, _ in routed if not name.startswith(runs)]:
        warn_once(
            f"note: {len(idle)} tensors of experts that the model does not run are left out: {idle[0]}, ..."
        )
    return dict(sorted(kept.items(), key=lambda item: (-_itemsize(item[1]), item[0])))  # keeps them aligned


def _itemsize(tensor: StoredTensor) -> int:
    numbers = int(np.prod(tensor.shape))
    return tensor.nbytes // numbers if numbers else 1
