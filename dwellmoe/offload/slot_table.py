"""Knows which expert lies in which slot of which tier, and carries out what the cache ordered; decides
nothing.

An expert counts as present when its bytes are: whatever breaks off, `reconcile` makes books and slots agree.
Experts are numbered l * E + e.
"""

from collections.abc import Callable, Iterable, Sequence
from queue import SimpleQueue
from typing import Any

import torch

from dwellmoe.cache.tiers.live import LiveCache, TransferPlan
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.io.storage import ReadFault
from dwellmoe.offload.slots import Expert, SlotPool, Staging, copy_expert, phase_of

ABSENT = -1
Merge = Callable[[int, int, Expert], None]
"""(layer, expert, weights): changes freshly read weights in place."""


class SlotTable:
    """Device slots, RAM slots below them, and loads on their way to the device.

    `at_home`: every expert has the slot of its number, so that a layer's experts lie side by side; slots
    behind them are for what only passes through.
    """

    def __init__(
        self,
        weights: ExpertWeights,
        live: LiveCache,
        device: SlotPool,
        ram: SlotPool | None,
        staging: Staging | None,
        readers: Readers,
        at_home: bool,
    ) -> None:
        self.weights, self.live, self.readers = weights, live, readers
        self.device, self.ram, self.staging, self.at_home = device, ram, staging, at_home
        self.merge: Merge | None = None
        self.experts, count = live.experts, len(weights.pieces)
        self.slot_of = [ABSENT] * count
        self._here: list[Expert | None] = [None] * count
        self.ram_slot_of: dict[int, int] = {}
        self.loading: dict[int, tuple[Load, int, int]] = {}  # number -> load, its slot, its staging place
        self.arrivals: SimpleQueue[Load] = SimpleQueue()
        self.dropped: list[tuple[Load, int, int]] = []  # called off, but a reader was at it
        straight = staging is None and not at_home
        itemsize = device.dtype.itemsize
        self._phase = [phase_of(pieces, itemsize) if straight else 0 for pieces in weights.pieces]
        self._gpu = torch.cuda.Stream(device.device) if device.device.type == "cuda" else None
        self._last_use: dict[int, Any] = {}
        self._staged: dict[int, Any] = {}
        self._list_free_slots()

    def _list_free_slots(self) -> None:
        taken = {slot for slot in self.slot_of if slot != ABSENT}
        first = len(self.slot_of) if self.at_home else 0
        self.free = [slot for slot in range(self.device.slots - 1, first - 1, -1) if slot not in taken]
        below = set(self.ram_slot_of.values())
        self.free_ram = [slot for slot in range(self.ram.slots if self.ram else 0) if slot not in below]
        if self.staging:
            self.staging.free = list(range(len(self.staging.host.bytes) // self.staging.slot_bytes))

    def expert(self, number: int) -> Expert:
        """The weights of an expert that is present."""
        found = self._here[number]
        assert found is not None
        return found

    def all_here(self, layer: int, experts: Sequence[int]) -> list[Expert] | None:
        """The weights of some experts of a layer, if all of them are present."""
        first = layer * self.experts
        found = [self._here[first + expert] for expert in experts]
        return None if None in found else found  # type: ignore[return-value]

    def start(self, number: int, stays: bool = True) -> Load | None:
        """Begins to bring an expert to the device, but does not submit the load; None when there is no slot
        for it yet.
        """
        slot = self._take_slot(number, stays)
        if slot is None:
            return None
        place = ABSENT
        if self.staging:
            if not self.staging.free:
                self._give_back(slot)
                return None
            place = self.staging.free.pop()
            self._wait_for_copy(place)
        spans = (
            self.staging.spans(place, self._phase[number], self.weights.pieces[number])
            if self.staging
            else self.device.spans(slot, self._phase[number], self.weights.pieces[number])
        )
        load = Load(number, spans, self.arrivals)
        self.loading[number] = load, slot, place
        return load

    def finish(self, number: int) -> Expert:
        """The weights of a load that arrived. Raises what its reader met."""
        load, slot, place = self.loading[number]
        layer, expert = divmod(number, self.experts)
        if isinstance(load.error, ReadFault):
            what = f"expert {expert} of MoE layer {layer}: {load.error.what}"
            raise ReadFault(load.error.path, what) from load.error
        if load.error is not None:
            raise load.error
        found = self.device.expert(slot, layer, self._phase[number])
        if self.staging:
            self._copy_in(self.staging.expert(place, layer, self._phase[number]), found, slot)
            self._staged_until_copied(place)
            self.staging.free.append(place)
        if self.merge:
            self.merge(layer, expert, found)
        del self.loading[number]
        self._settle(number, slot)
        return found

    def from_ram(self, number: int, stays: bool = True) -> Expert | None:
        """Copies an expert up; None when there is no slot for it yet."""
        slot = self._take_slot(number, stays)
        if slot is None:
            return None
        assert self.ram is not None
        if self._gpu:
            self._gpu.wait_stream(torch.cuda.current_stream())  # it may still be on its way down
        layer = number // self.experts
        found = self.device.expert(slot, layer, self._phase[number])
        self._copy_in(self.ram.expert(self.ram_slot_of[number], layer), found, slot)
        self._settle(number, slot)
        return found

    def _settle(self, number: int, slot: int) -> None:
        self.slot_of[number] = slot
        self._here[number] = self.device.expert(slot, number // self.experts, self._phase[number])

    def _absent(self, number: int) -> None:
        self.slot_of[number], self._here[number] = ABSENT, None

    def leave(self, number: int, orders: TransferPlan) -> None:
        """An expert leaves the device, to RAM where that was ordered."""
        slot = self.slot_of[number]
        if slot == ABSENT:
            return
        if number in orders.demoted and number not in self.ram_slot_of and self.free_ram:
            self._demote(number)
        self._absent(number)
        if self._gpu:
            self._last_use[slot] = torch.cuda.current_stream().record_event()
        self._give_back(slot)

    def _demote(self, number: int) -> None:
        assert self.ram is not None
        below = self.free_ram.pop()
        copy_expert(self.expert(number), self.ram.expert(below, number // self.experts))
        self.ram_slot_of[number] = below

    def leave_ram(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            slot = self.ram_slot_of.pop(number, None)
            if slot is not None:
                self.free_ram.append(slot)

    def _take_slot(self, number: int, stays: bool) -> int | None:
        if self.at_home and stays:
            for load, slot, _ in self.dropped:
                if slot == number:
                    load.arrived.wait()
            return number
        return self.free.pop() if self.free else None

    def _give_back(self, slot: int) -> None:
        if not self.at_home or slot >= len(self.slot_of):
            self.free.append(slot)

    def drop(self, number: int) -> bool:
        """Calls off a load; whether a reader had begun with it. Its slot is free once that reader is done."""
        load, slot, place = self.loading.pop(number)
        self.readers.cancel([load], wait=False)
        self.dropped.append((load, slot, place))
        self.collect()
        return load.running + load.done > 0

    def collect(self) -> None:
        """Takes the slots back that readers have left alone by now."""
        waiting = []
        for load, slot, place in self.dropped:
            if not load.arrived.is_set():
                waiting.append((load, slot, place))
                continue
            self._give_back(slot)
            if place != ABSENT and self.staging:
                self.staging.free.append(place)
        self.dropped = waiting

    def reconcile(self) -> None:
        """After anything broke off: no load is under way, and the books hold exactly what is present."""
        self.readers.cancel([load for load, _, _ in (*self.loading.values(), *self.dropped)])
        self.loading.clear()
        self.dropped.clear()
        if self._gpu:
            torch.cuda.synchronize(self.device.device)
        for layer in range(self.live.layers):
            on_device, in_ram = self.live.on_device(layer), self.live.in_ram(layer)
            for expert in range(self.experts):
                self._reconcile_one(layer, expert, bool(on_device[expert]), bool(in_ram[expert]))
        self._list_free_slots()

    def _reconcile_one(self, layer: int, expert: int, on_device: bool, in_ram: bool) -> None:
        number = layer * self.experts + expert
        present = self.slot_of[number] != ABSENT and self._here[number] is not None
        below = number in self.ram_slot_of
        if not (present and on_device):
            self._absent(number)
        if below and not in_ram:
            del self.ram_slot_of[number]
        if (on_device and not present) or (in_ram and not below):
            self.live.lose(layer, expert)
            self._absent(number)
            self.ram_slot_of.pop(number, None)

    def empty(self) -> None:
        """Forgets all weights: they were read under another adapter."""
        self.live.reset()
        self.reconcile()

    def _copy_in(self, source: Expert, target: Expert, slot: int) -> None:
        if self._gpu is None:
            copy_expert(source, target)
            return
        last_use = self._last_use.pop(slot, None)
        with torch.cuda.stream(self._gpu):
            if last_use is not None:
                self._gpu.wait_event(last_use)
            copy_expert(source, target)
        torch.cuda.current_stream().wait_stream(self._gpu)

    def _staged_until_copied(self, place: int) -> None:
        if self._gpu:
            self._staged[place] = self._gpu.record_event()

    def _wait_for_copy(self, place: int) -> None:
        if event := self._staged.pop(place, None):
            event.synchronize()
