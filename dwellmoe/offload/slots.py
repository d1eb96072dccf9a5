"""Memory for experts: equal slots, one expert a slot, and the tensors inside a slot."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwellmoe.offload.expert_layout import Expert, ExpertLayout, tensor_of
from dwellmoe.offload.expert_weights import Piece
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory, pages
from dwellmoe.offload.io.storage import Span


def bytes_of_slot(record_bytes: int) -> int:
    """Bytes of a slot for records of this size, which may begin anywhere in its first page."""
    return pages(record_bytes + PAGE_BYTES)


class SlotPool:
    """Equal slots for the records of any layer, on one device.

    layouts      [L]: of an expert in its slot
    dtype        that is computed in, of the weights that are not in low bits
    page_offset  of a record: it may begin anywhere in the first page of its slot, at the offset it has in its
                 page of the file, so that a direct read needs no copy
    """

    def __init__(
        self, layouts: Sequence[ExpertLayout], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layouts = list(layouts)
        self.slots, self.dtype, self.device = slots, dtype, device
        self.record_bytes = tuple(layout.nbytes for layout in layouts)
        self.slot_bytes = bytes_of_slot(max(self.record_bytes))
        self.host = None if device.type == "cuda" else HostMemory(slots * self.slot_bytes)
        self.memory = self.host.tensor if self.host else _on_device(slots * self.slot_bytes, device)
        self._experts: dict[tuple[int, int, int], Expert] = {}
        self._layout_of = [self.layouts.index(layout) for layout in self.layouts]

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def expert(self, slot: int, layer: int, page_offset: int = 0) -> Expert:
        """The tensors of an expert of `layer` in this slot."""
        key = (slot, self._layout_of[layer], page_offset)
        found = self._experts.get(key)
        if found is None:
            begin = slot * self.slot_bytes + page_offset
            found = self._experts[key] = self.layouts[layer].expert(self.memory, begin)
        return found

    def stacked(self, first_slot: int, experts: int, layer: int) -> dict[str, Tensor]:
        """The parameters of all experts of a layer that lie in consecutive slots, [E, ...] each, by name; of
        a layer without low bits.
        """
        typed = self.memory.view(self.dtype)
        stride = self.slot_bytes // self.dtype.itemsize
        found = {}
        for part in self.layouts[layer].parts:
            one = tensor_of(self.memory, 0, part)
            offset = first_slot * stride + part.begin // self.dtype.itemsize
            found[part.name] = typed.as_strided((experts, *part.shape), (stride, *one.stride()), offset)
        return found

    def spans(self, slot: int, page_offset: int, pieces: Sequence[Piece]) -> list[Span]:
        """Where the pieces of a record are read to."""
        assert self.host is not None
        return _spans(self.host, self.slot_bytes, slot, page_offset, pieces)


class Staging:
    """Host slots that records pass through as the checkpoint has them, on their way to slots that readers
    cannot fill: those of a GPU, or of another type. `free` are the slots not in use.
    """

    def __init__(self, layouts: Sequence[ExpertLayout], slots: int, pinned: bool) -> None:
        self.layouts, self.slots = list(layouts), slots
        self.slot_bytes = bytes_of_slot(max(layout.nbytes for layout in layouts))
        self.host = HostMemory(slots * self.slot_bytes, pinned)
        self.free = list(range(slots))

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def spans(self, slot: int, page_offset: int, pieces: Sequence[Piece]) -> list[Span]:
        """Where the pieces of a record are read to."""
        return _spans(self.host, self.slot_bytes, slot, page_offset, pieces)

    def expert(self, slot: int, layer: int, page_offset: int) -> Expert:
        """The tensors of an expert of `layer` in this slot, as the checkpoint has them."""
        return self.layouts[layer].expert(self.host.tensor, slot * self.slot_bytes + page_offset)


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


def _on_device(nbytes: int, device: torch.device) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
