"""Knows how one layer's request is served: experts that are present are computed first, while the others
come; does not know which experts those are, nor what a phase is.
"""

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from dwellmoe.cache.tiers.live import TransferPlan
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.slot_table import ABSENT, SlotTable
from dwellmoe.offload.statistics import PhaseCounts


class Request:
    """The experts one layer needs now, being brought, computed, and let go.

    numbers  distinct, in order, l * E + e
    work     takes `add(expert, weights)` for each of them, in any order
    """

    def __init__(
        self,
        residents: SlotTable,
        readers: Readers,
        prefetch: Prefetch | None,
        numbers: Sequence[int],
        orders: TransferPlan,
        work: Any,
        counts: PhaseCounts,
    ) -> None:
        self.residents, self.readers, self.prefetch = residents, readers, prefetch
        self.orders, self.work, self.counts = orders, work, counts
        slot_of = residents.slot_of
        self.asked = set(numbers)
        self.present = [number for number in numbers if slot_of[number] != ABSENT]
        self.waiting = deque(number for number in numbers if slot_of[number] == ABSENT)
        self.first = numbers[0] - numbers[0] % residents.experts if numbers else 0
        counts.device_hits += len(self.present)

    def begin(self) -> None:
        """Makes room and begins to bring what is missing."""
        residents = self.residents
        if self.orders.forgotten:
            residents.leave_ram(self.orders.forgotten)
        for number in self.orders.leaving:
            if number not in self.asked:
                residents.leave(number, self.orders)
                self._bring(at_most=1)
        if self.waiting:
            self._bring()

    def finish(self) -> None:
        """Computes all of them, those that are present first. Raises ReadFault where one cannot be read."""
        while self.present or self.waiting or self.residents.loading:
            if self.present:
                self._use(self.present.pop(0))
            elif not self._take_arrived():
                break
            if self.waiting:
                self._bring()
        assert not self.waiting, "an expert found no slot"

    def _use(self, number: int) -> None:
        self.work.add(number - self.first, self.residents.expert(number))
        if number in self.orders.leaving:
            self.residents.leave(number, self.orders)

    def _bring(self, at_most: int | None = None) -> None:
        """Begins to bring what there is a slot for, in order."""
        started: list[Load] = []
        while self.waiting and at_most != 0:
            number = self.waiting[0]
            if not (self._read_ahead(number) or self._from_ram(number) or self._from_disk(number, started)):
                break
            self.waiting.popleft()
            at_most = None if at_most is None else at_most - 1
        if started:
            self.readers.submit(started)

    def _read_ahead(self, number: int) -> bool:
        """Whether it is on its way already, or here, because it was predicted."""
        if self.prefetch is None or not self.prefetch.claim(number):
            return False
        self._count_disk(number)
        self.counts.prefetch_hits += 1
        return True

    def _from_ram(self, number: int) -> bool:
        residents = self.residents
        if number not in residents.ram_slot_of:
            return False
        if residents.from_ram(number, number not in self.orders.leaving) is None:
            return False
        if number in self.orders.promoted:
            residents.leave_ram([number])
        self.counts.ram_hits += 1
        self.counts.ram_bytes += residents.weights.record_bytes[number // residents.experts]
        self.present.append(number)
        return True

    def _from_disk(self, number: int, started: list[Load]) -> bool:
        residents = self.residents
        if number in residents.ram_slot_of:
            return False
        load = residents.start(number, number not in self.orders.leaving)
        if load is None:
            return False
        started.append(load)
        self._count_disk(number)
        return True

    def _count_disk(self, number: int) -> None:
        self.counts.disk_loads += 1
        self.counts.disk_bytes += self.residents.weights.record_bytes[number // self.residents.experts]

    def _take_arrived(self) -> bool:
        """Waits for a load of this request; whether there was one to wait for."""
        loading = self.residents.loading
        if not any(number in self.asked for number in loading):
            return False
        began = perf_counter()
        while True:
            load = self.residents.arrivals.get()
            if load.number in self.asked and loading.get(load.number, (None,))[0] is load:
                break
        self.counts.stall_seconds += perf_counter() - began
        self.residents.finish(load.number)
        self.present.append(load.number)
        return True
