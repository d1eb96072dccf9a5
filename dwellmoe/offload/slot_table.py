"""Slot table: which expert lies in which slot of the device and of RAM; carries out what the caches decided.

An expert counts as present when its weights are: after any failure `reconcile` makes table and caches agree.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.offload.expert_copies import ExpertCopies
from dwellmoe.offload.expert_layout import Expert, ExpertLayout, copy_expert
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.pending_loads import PendingLoads
from dwellmoe.offload.slots import SlotPool, Staging

ABSENT = -1


class SlotTable:
    """Device slots, RAM slots below them, and the loads on their way to the device.

    all_fit    the device has a slot for every expert: the slot of its flat id, so that a layer's experts are
               neighbours. The slots behind those hold what only passes through
    """

    def __init__(
        self,
        weights: ExpertWeights,
        live: LiveCache,
        device: SlotPool,
        ram: SlotPool | None,
        staging: Staging | None,
        readers: Readers,
        all_fit: bool,
    ) -> None:
        self.weights, self.live = weights, live
        self.device, self.ram, self.all_fit = device, ram, all_fit
        self.experts = live.experts
        self.copies = ExpertCopies(device.device)
        direct = staging is None and not all_fit
        self.loads = PendingLoads(
            weights=weights,
            experts=live.experts,
            device=device,
            staging=staging,
            readers=readers,
            copies=self.copies,
            direct=direct,
        )
        self.slot_of = [ABSENT] * len(weights.pieces)
        """By flat id: the device slot, or ABSENT."""
        self.ram_slot_of: dict[FlatId, int] = {}
        self._weights_of: list[Expert | None] = [None] * len(weights.pieces)
        self._list_free_slots()

    def _list_free_slots(self) -> None:
        taken = {slot for slot in self.slot_of if slot != ABSENT}
        first = len(self.slot_of) if self.all_fit else 0
        self.free = [slot for slot in range(self.device.slots - 1, first - 1, -1) if slot not in taken]
        taken_in_ram = set(self.ram_slot_of.values())
        ram_slots = range(self.ram.slots if self.ram else 0)
        self.free_in_ram = [slot for slot in ram_slots if slot not in taken_in_ram]

    def expert(self, flat_id: FlatId) -> Expert:
        """The weights of an expert that is present."""
        found = self._weights_of[flat_id]
        assert found is not None
        return found

    def if_all_present(self, layer: int, experts: Sequence[int]) -> list[Expert] | None:
        """The weights of some experts of a layer, or None where one of them is not on the device."""
        first = layer * self.experts
        found = [self._weights_of[first + expert] for expert in experts]
        return None if None in found else found  # type: ignore[return-value]

    def is_stacked(self, layer: int) -> bool:
        """Whether the experts of a layer lie in the device's slots as its module's parameters would."""
        return self.all_fit and not self.layout(layer).formats

    def layout(self, layer: int) -> ExpertLayout:
        """Of the experts of a layer in their slots."""
        return self.device.layouts[layer]

    def record_bytes(self, flat_id: FlatId) -> int:
        """Bytes of an expert in the checkpoint."""
        return self.weights.record_bytes[flat_id // self.experts]

    def in_file_order(self, flat_ids: Iterable[FlatId]) -> list[FlatId]:
        """Experts to read, as their records follow one another in the checkpoint; after them those in RAM."""
        pieces = self.weights.pieces
        return sorted(flat_ids, key=lambda each: (each in self.ram_slot_of, *pieces[each][0][:2]))

    def start(self, flat_id: FlatId, stays: bool = True) -> Load | None:
        """A load of an expert, to be submitted to the readers; None while there is no slot for it."""
        slot = self._take_slot(flat_id, stays)
        if slot is None:
            return None
        load = self.loads.start(flat_id, slot)
        if load is None:
            self._give_back(slot)
        return load

    def finish(self, flat_id: FlatId) -> None:
        """An expert whose load arrived is present from now on. Raises the error of its reader."""
        self._commit(flat_id, self.loads.finish(flat_id))

    def cancel(self, flat_id: FlatId) -> bool:
        """Cancels a load; returns whether a reader had begun it. Its slot is free once the reader is done."""
        begun = self.loads.cancel(flat_id)
        self.reclaim()
        return begun

    def reclaim(self) -> None:
        """Takes back the slots of cancelled loads that readers are done with."""
        for slot in self.loads.take_released():
            self._give_back(slot)

    def copy_from_ram(self, flat_id: FlatId, stays: bool = True) -> bool:
        """Copies an expert from RAM to the device; returns whether there was a slot for it."""
        slot = self._take_slot(flat_id, stays)
        if slot is None:
            return False
        assert self.ram is not None
        self.copies.wait_for_computation()  # the expert may still be on its way down
        in_ram = self.ram.expert(self.ram_slot_of[flat_id], flat_id // self.experts)
        self.copies.copy_in(in_ram, self.loads.expert_in(slot, flat_id), slot)
        self._commit(flat_id, slot)
        return True

    def _commit(self, flat_id: FlatId, slot: int) -> None:
        self.slot_of[flat_id] = slot
        self._weights_of[flat_id] = self.loads.expert_in(slot, flat_id)

    def _forget(self, flat_id: FlatId) -> None:
        self.slot_of[flat_id], self._weights_of[flat_id] = ABSENT, None

    def evict(self, flat_id: FlatId, demote: bool) -> None:
        """An expert leaves the device, where it is on it: to RAM with `demote`, unless RAM has it."""
        slot = self.slot_of[flat_id]
        if slot == ABSENT:
            return
        if demote and flat_id not in self.ram_slot_of and self.free_in_ram:
            self._demote(flat_id)
        self._forget(flat_id)
        self.copies.slot_is_free(slot)
        self._give_back(slot)

    def _demote(self, flat_id: FlatId) -> None:
        assert self.ram is not None
        ram_slot = self.free_in_ram.pop()
        copy_expert(self.expert(flat_id), self.ram.expert(ram_slot, flat_id // self.experts))
        self.ram_slot_of[flat_id] = ram_slot

    def drop_from_ram(self, flat_ids: Iterable[FlatId]) -> None:
        for flat_id in flat_ids:
            slot = self.ram_slot_of.pop(flat_id, None)
            if slot is not None:
                self.free_in_ram.append(slot)

    def _take_slot(self, flat_id: FlatId, stays: bool) -> int | None:
        if self.all_fit and stays:
            self.loads.wait_for_cancelled(flat_id)
            return flat_id
        return self.free.pop() if self.free else None

    def _give_back(self, slot: int) -> None:
        if not self.all_fit or slot >= len(self.slot_of):
            self.free.append(slot)

    def reconcile(self) -> None:
        """After any failure: no load is under way, and the caches hold exactly the experts that are present.

        An expert that a cache holds and no slot is taken out of all caches; one that a slot holds and no
        cache leaves its slot.
        """
        self.loads.abandon()
        self.copies.synchronize()
        for layer in range(self.live.layers):
            on_device, in_ram = self.live.on_device(layer), self.live.in_ram(layer)
            for expert in range(self.experts):
                self._reconcile_one(layer, expert, bool(on_device[expert]), bool(in_ram[expert]))
        self._list_free_slots()

    def _reconcile_one(self, layer: int, expert: int, on_device: bool, in_ram: bool) -> None:
        flat_id = FlatId(layer * self.experts + expert)
        present = self.slot_of[flat_id] != ABSENT and self._weights_of[flat_id] is not None
        present_in_ram = flat_id in self.ram_slot_of
        if not (present and on_device):
            self._forget(flat_id)
        if present_in_ram and not in_ram:
            del self.ram_slot_of[flat_id]
        if (on_device and not present) or (in_ram and not present_in_ram):
            self.live.invalidate(layer, expert)
            self._forget(flat_id)
            self.ram_slot_of.pop(flat_id, None)

    def empty(self) -> None:
        """Cold caches and empty slots."""
        self.live.reset()
        self.reconcile()

    def on_device(self) -> np.ndarray:
        """bool [L, E]: the experts that are present on the device."""
        return (np.array(self.slot_of) != ABSENT).reshape(self.live.layers, self.experts)

    def in_ram(self) -> np.ndarray:
        """bool [L, E]: the experts that are present in RAM."""
        found = np.zeros(len(self.slot_of), np.bool_)
        found[list(self.ram_slot_of)] = True
        return found.reshape(self.live.layers, self.experts)
