"""Knows the memory that experts are kept in, a slot an expert, and the tensors in a slot; does not know who
lies where, or why.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dwellmoe.offload.expert_weights import Part, Piece
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


class SlotPool:
    """Equal slots for the records of any layer, on one device, in the type that is computed in.

    parts    [L]: a record's parameters, with the types they have in the checkpoint
    dtype    type in the slots
    phase    a record may begin anywhere in the first page of its slot: where it lies in its page of the file,
             so that a direct read can go straight to its place
    """

    def __init__(
        self, parts: Sequence[tuple[Part, ...]], slots: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.parts = [_as_kept(layer, dtype) for layer in parts]
        self.slots, self.dtype, self.device = slots, dtype, device
        self.record_bytes = tuple(layer[-1].at + _nbytes(layer[-1]) for layer in self.parts)
        self.slot_bytes = pages(max(self.record_bytes) + PAGE_BYTES)
        self.host = None if device.type == "cuda" else HostMemory(slots * self.slot_bytes)
        self.memory = self.host.tensor if self.host else _on_device(slots * self.slot_bytes, device)
        self._experts: dict[tuple[int, int, int], Expert] = {}
        self._kinds = [self.parts.index(layer) for layer in self.parts]

    @property
    def nbytes(self) -> int:
        return self.slots * self.slot_bytes

    def expert(self, slot: int, layer: int, phase: int = 0) -> Expert:
        """The tensors of an expert of `layer` in this slot."""
        key = (slot, self._kinds[layer], phase)
        found = self._experts.get(key)
        if found is None:
            begin = slot * self.slot_bytes + phase
            named = {part.name: _tensor(self.memory, begin, part) for part in self.parts[layer]}
            found = self._experts[key] = expert_of(named)
        return found

    def stacked(self, first_slot: int, experts: int, layer: int) -> dict[str, Tensor]:
        """The parameters of all experts of a layer that lie in consecutive slots, [E, ...] each, by name."""
        typed = self.memory.view(self.dtype)
        step = self.slot_bytes // self.dtype.itemsize
        found = {}
        for part in self.parts[layer]:
            one = _tensor(self.memory, 0, part)
            offset = first_slot * step + part.at // self.dtype.itemsize
            found[part.name] = typed.as_strided((experts, *part.shape), (step, *one.stride()), offset)
        return found

    def spans(self, slot: int, phase: int, pieces: Sequence[Piece]) -> list[Span]:
        """Where the pieces of a record are read to. Only a record of one piece may spill over its ends."""
        assert self.host is not None
        memory = self.host.bytes[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]
        if len(pieces) == 1:
            piece = pieces[0]
            return [Span(piece.shard, piece.offset, piece.nbytes, memory, phase)]
        places = (memory[phase + piece.at :][: piece.nbytes] for piece in pieces)
        return [
            Span(piece.shard, piece.offset, piece.nbytes, place, 0)
            for piece, place in zip(pieces, places, strict=True)
        ]


class Staging:
    """Host slots that records pass through in the checkpoint's own types, on their way to slots that cannot
    be read into: those of a GPU, or of another type. `free` are the numbers of those not in use.
    """

    def __init__(
        self, parts: Sequence[tuple[Part, ...]], record_bytes: int, slots: int, pinned: bool
    ) -> None:
        self.parts, self.slot_bytes = list(parts), pages(record_bytes + PAGE_BYTES)
        self.host = HostMemory(slots * self.slot_bytes, pinned)
        self.free = list(range(slots))
        self.nbytes = slots * self.slot_bytes

    def spans(self, place: int, phase: int, pieces: Sequence[Piece]) -> list[Span]:
        return SlotPool.spans(self, place, phase, pieces)  # type: ignore[arg-type] - the same memory layout

    def expert(self, place: int, layer: int, phase: int) -> Expert:
        begin = place * self.slot_bytes + phase
        return expert_of({part.name: _tensor(self.host.tensor, begin, part) for part in self.parts[layer]})


def copy_expert(source: Expert, target: Expert) -> None:
    """Copies all weights, into the target's type and device."""
    for old, new in zip(source, target, strict=True):
        if old is not None and new is not None:
            new.copy_(old, non_blocking=True)


def phase_of(pieces: Sequence[Piece], itemsize: int) -> int:
    """Where in its page a record of one piece begins in the file; 0 where it has to be copied anyway."""
    phase = pieces[0].offset % PAGE_BYTES
    return phase if len(pieces) == 1 and phase % itemsize == 0 else 0


def expert_of(named: dict[str, Tensor]) -> Expert:
    up, up_bias = (next((named[name] for name in names if name in named), None) for names in (UP, UP_BIAS))
    assert up is not None
    return Expert(up, named["down_proj"], up_bias, named.get("down_proj_bias"))


def _as_kept(parts: tuple[Part, ...], dtype: torch.dtype) -> tuple[Part, ...]:
    kept, at = [], 0
    for part in parts:
        kept.append(part._replace(dtype=dtype, at=at))
        at += _nbytes(kept[-1])
    return tuple(kept)


def _nbytes(part: Part) -> int:
    return int(np.prod(part.shape)) * part.dtype.itemsize


def _tensor(memory: Tensor, begin: int, part: Part) -> Tensor:
    at = begin + part.at
    return memory[at : at + _nbytes(part)].view(part.dtype).view(part.shape)


def _on_device(nbytes: int, device: torch.device) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)
