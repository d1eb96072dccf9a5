"""Loads on their way from disk to device slots: begun, finished, cancelled."""

from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

from dwellmoe.cache.flat_id import FlatId, layer_and_expert
from dwellmoe.offload.expert_copies import ExpertCopies
from dwellmoe.offload.expert_layout import Expert, into_model_order
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.io.storage import ReadFault, Span
from dwellmoe.offload.slots import SlotPool, Staging, page_offset_of


class Pending(NamedTuple):
    """One load and where it goes."""

    load: Load
    slot: int
    """On the device."""
    staging_slot: int | None
    """Where it passes through; None where readers fill the device slot itself."""


class PendingLoads:
    """Every load that was begun and has not been used yet, by the flat id of its expert.

    arrivals   loads whose readers are done, failed ones and cancelled ones included
    cancelled  loads whose slot a reader may still write to
    direct     records are read into their slots as they lie in the file, from the same offset in a page
    """

    def __init__(
        self,
        weights: ExpertWeights,
        experts: int,
        device: SlotPool,
        staging: Staging | None,
        readers: Readers,
        copies: ExpertCopies,
        direct: bool,
    ) -> None:
        self.weights, self.experts, self.device = weights, experts, device
        self.staging, self.readers, self.copies = staging, readers, copies
        self.pending: dict[FlatId, Pending] = {}
        self.arrivals: SimpleQueue[Load] = SimpleQueue()
        self.cancelled: list[Pending] = []
        itemsizes = [layout.itemsize for layout in device.layouts]
        self.page_offset = [
            page_offset_of(pieces, itemsizes[flat_id // experts]) if direct else 0
            for flat_id, pieces in enumerate(weights.pieces)
        ]

    def start(self, flat_id: FlatId, slot: int) -> Load | None:
        """A load into a device slot, to be submitted to the readers; None while no staging slot is free."""
        staging_slot = None
        if self.staging:
            if not self.staging.free:
                return None
            staging_slot = self.staging.free.pop()
            self.copies.wait_for_staging(staging_slot)
        spans = self._spans(flat_id, slot, staging_slot)
        load = Load(flat_id, spans, self.arrivals, self._check(flat_id, spans))
        self.pending[flat_id] = Pending(load, slot, staging_slot)
        return load

    def _spans(self, flat_id: FlatId, slot: int, staging_slot: int | None):
        page_offset, pieces = self.page_offset[flat_id], self.weights.pieces[flat_id]
        if self.staging and staging_slot is not None:
            return self.staging.spans(staging_slot, page_offset, pieces)
        return self.device.spans(slot, page_offset, pieces)

    def _check(self, flat_id: FlatId, spans: Sequence[Span]) -> Callable[[], None] | None:
        """Compares a record that was read with its checksum; None where there are no checksums."""
        if not self.weights.checksums:
            return None
        (span,) = spans
        return partial(self.weights.verify, flat_id, span.memory[span.begin :])

    def finish(self, flat_id: FlatId) -> int:
        """The device slot that now holds a load that arrived. Raises the error of its reader: a ReadFault
        names the expert too. A load that failed stays pending.
        """
        load, slot, staging_slot = self.pending[flat_id]
        layer, expert = layer_and_expert(flat_id, self.experts)
        if isinstance(load.error, ReadFault):
            what = f"expert {expert} of MoE layer {layer}: {load.error.what}"
            raise ReadFault(load.error.path, what) from load.error
        if load.error is not None:
            raise load.error
        if self.staging and staging_slot is not None:
            page_offset = self.page_offset[flat_id]
            staged = self.staging.expert(staging_slot, layer, page_offset)
            self.copies.copy_in(staged, self.expert_in(slot, flat_id), slot)
            self.copies.staging_is_read(staging_slot)
            self.staging.free.append(staging_slot)
        into_model_order(self.expert_in(slot, flat_id), self.weights.parts[layer])
        del self.pending[flat_id]
        return slot

    def expert_in(self, slot: int, flat_id: FlatId) -> Expert:
        """The weights of an expert that is in this device slot, or will be."""
        return self.device.expert(slot, flat_id // self.experts, self.page_offset[flat_id])

    def cancel(self, flat_id: FlatId) -> bool:
        """Cancels a load; returns whether a reader had begun it."""
        pending = self.pending.pop(flat_id)
        self.readers.cancel([pending.load], wait=False)
        self.cancelled.append(pending)
        return pending.load.begun

    def take_released(self) -> list[int]:
        """Device slots of cancelled loads that no reader writes to any more."""
        cancelled, self.cancelled, released = self.cancelled, [], []
        for each in cancelled:
            (released if each.load.arrived.is_set() else self.cancelled).append(each)
        if self.staging:
            self.staging.free += [each.staging_slot for each in released if each.staging_slot is not None]
        return [each.slot for each in released]

    def wait_for_cancelled(self, slot: int) -> None:
        """Returns when no cancelled load writes to this device slot."""
        for cancelled in self.cancelled:
            if cancelled.slot == slot:
                cancelled.load.arrived.wait()

    def abandon(self) -> None:
        """Cancels every load and returns when no reader writes to any slot."""
        self.readers.cancel([each.load for each in (*self.pending.values(), *self.cancelled)])
        self.pending.clear()
        self.cancelled.clear()
        if self.staging:
            self.staging.free = list(range(self.staging.slots))
