"""Memory for experts: equal slots, one expert a slot, and the tensors inside a slot."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwellmoe.offload.expert_weights import AS_IN_MODEL, INTERLEAVED, TRANSPOSED, Part, Piece
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory, pages
from dwellmoe.offload.io.storage import Span

UP = ("gate_up_proj", "up_proj")
UP_BIAS = ("gate_up_proj_bias", "up_proj_bias")
NAMES = (*UP, *UP_BIAS, "down_proj", "down_proj_bias")


class Expert(NamedTuple):
    """The weights of one expert, as its module would slice them; the first is gate and up, or up alone."""

    up: Tensor
    down: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


def bytes_of_slot(record_bytes: int) -> int:
    """Bytes of a slot for records of this size, which may begin anywhere in its first page."""
    return pages(record_bytes + PAGE_BYTES)


class SlotPool:
    """Equal slots for the records of any layer, on one device, in the type that is computed in.

    parts        [L]: a record's parameters, with their types in the checkpoint
    dtype        type in the slots
    page_offset  of a record: it may begin anywhere in the first page of its slot, at the offset it has in its
                 page of the file, so that a direct read needs no copy
    """

    def __init__(
        self, parts: Sequence[tuple[Part, ...]], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.parts = [_in_slot(layer_parts, dtype) for layer_parts in parts]
        self.slots, self.dtype, self.device = slots, dtype, device
        self.record_bytes = tuple(
            layer_parts[-1].begin + layer_parts[-1].nbytes for layer_parts in self.parts
        )
        self.slot_bytes = bytes_of_slot(max(self.record_bytes))
        self.host = None if device.type == "cuda" else HostMemory(slots * self.slot_bytes)
        self.memory = self.host.tensor if self.host else _on_device(slots * self.slot_bytes, device)
        self._experts: dict[tuple[int, int, int], Expert] = {}
        self._layout_of = [self.parts.index(layer_parts) for layer_parts in self.parts]

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def expert(self, slot: int, layer: int, page_offset: int = 0) -> Expert:
        """The tensors of an expert of `layer` in this slot."""
        key = (slot, self._layout_of[layer], page_offset)
        found = self._experts.get(key)
        if found is None:
            begin = slot * self.slot_bytes + page_offset
            found = self._experts[key] = _expert_in(self.memory, begin, self.parts[layer])
        return found

    def stacked(self, first_slot: int, experts: int, layer: int) -> dict[str, Tensor]:
        """The parameters of all experts of a layer that lie in consecutive slots, [E, ...] each, by name."""
        typed = self.memory.view(self.dtype)
        stride = self.slot_bytes // self.dtype.itemsize
        found = {}
        for part in self.parts[layer]:
            one = _tensor(self.memory, 0, part)
            offset = first_slot * stride + part.begin // self.dtype.itemsize
            found[part.name] = typed.as_strided((experts, *part.shape), (stride, *one.stride()), offset)
        return found

    def spans(self, slot: int, page_offset: int, pieces: Sequence[Piece]) -> list[Span]:
        """Where the pieces of a record are read to."""
        assert self.host is not None
        return _spans(self.host, self.slot_bytes, slot, page_offset, pieces)


class Staging:
    """Host slots that records pass through in the checkpoint's own types, on their way to slots that readers
    cannot fill: those of a GPU, or of another type. `free` are the slots not in use.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, ...]], record_bytes: int, slots: int, pinned: bool
    ) -> None:
        self.parts, self.slots = list(parts), slots
        self.slot_bytes = bytes_of_slot(record_bytes)
        self.host = HostMemory(slots * self.slot_bytes, pinned)
        self.free = list(range(slots))

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def spans(self, slot: int, page_offset: int, pieces: Sequence[Piece]) -> list[Span]:
        """Where the pieces of a record are read to."""
        return _spans(self.host, self.slot_bytes, slot, page_offset, pieces)

    def expert(self, slot: int, layer: int, page_offset: int) -> Expert:
        """The tensors of an expert of `layer` in this slot, in the checkpoint's types."""
        return _expert_in(self.host.tensor, slot * self.slot_bytes + page_offset, self.parts[layer])


def copy_expert(source: Expert, target: Expert) -> None:
    """Copies all weights, into the target's type and device."""
    for old, new in zip(source, target, strict=True):
        if old is not None and new is not None:
            new.copy_(old, non_blocking=True)


def into_model_order(expert: Expert, parts: Sequence[Part]) -> None:
    """Puts weights that were read in the checkpoint's order into the model's, in place."""
    for part in parts:
        if part.order == AS_IN_MODEL:
            continue
        weight = _named(expert, part.name)
        weight.copy_(in_model_order(weight, part.order))


def in_model_order(weight: Tensor, order: str) -> Tensor:
    """One parameter of an expert whose numbers are in the checkpoint's order."""
    if order == INTERLEAVED:
        return torch.cat([weight[0::2], weight[1::2]])
    return weight.view(weight.shape[::-1]).T.clone() if order == TRANSPOSED else weight


def _named(expert: Expert, name: str) -> Tensor:
    if name in UP or name in UP_BIAS:
        found = expert.up if name in UP else expert.up_bias
    else:
        found = expert.down if name == "down_proj" else expert.down_bias
    assert found is not None
    return found


def page_offset_of(pieces: Sequence[Piece], itemsize: int) -> int:
    """Where in its page of the file a record of one piece begins; 0 for a record that must be copied."""
    offset = pieces[0].offset % PAGE_BYTES
    return offset if len(pieces) == 1 and offset % itemsize == 0 else 0


def _spans(
    host: HostMemory, slot_bytes: int, slot: int, page_offset: int, pieces: Sequence[Piece]
) -> list[Span]:
    """Only the read of a record of one piece may spill over the record's ends, within its slot."""
    memory = host.bytes[slot * slot_bytes : (slot + 1) * slot_bytes]
    if len(pieces) == 1:
        piece = pieces[0]
        return [Span(piece.shard, piece.offset, piece.nbytes, memory, page_offset)]
    targets = (memory[page_offset + piece.begin :][: piece.nbytes] for piece in pieces)
    return [
        Span(piece.shard, piece.offset, piece.nbytes, target, 0)
        for piece, target in zip(pieces, targets, strict=True)
    ]


def _expert_in(memory: Tensor, begin: int, parts: tuple[Part, ...]) -> Expert:
    named = {part.name: _tensor(memory, begin, part) for part in parts}
    up, up_bias = (next((named[name] for name in names if name in named), None) for names in (UP, UP_BIAS))
    assert up is not None
    return Expert(up, named["down_proj"], up_bias, named.get("down_proj_bias"))


def _in_slot(parts: tuple[Part, ...], dtype: torch.dtype) -> tuple[Part, ...]:
    """The same parameters one after the other in another type."""
    found: list[Part] = []
    begin = 0
    for part in parts:
        found.append(part._replace(dtype=dtype, begin=begin))
        begin += found[-1].nbytes
    return tuple(found)


def _tensor(memory: Tensor, begin: int, part: Part) -> Tensor:
    begin += part.begin
    return memory[begin : begin + part.nbytes].view(part.dtype).view(part.shape)


def _on_device(nbytes: int, device: torch.device) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
