"""Serves one layer's request: computes the experts that are present while the others are loading."""

from collections import deque
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.slot_table import ABSENT, SlotTable
from dwellmoe.offload.statistics import PhaseCounts


class LayerRequest:
    """The experts that one layer needs now: loaded, computed, and evicted as the plan says.

    flat_ids  of distinct experts of one layer, in order
    work      takes `add(expert, weights)` for each of them, in any order
    """

    def __init__(
        self,
        slot_table: SlotTable,
        readers: Readers,
        prefetch: Prefetch | None,
        flat_ids: Sequence[FlatId],
        plan: TransferPlan,
        work: Any,
        counts: PhaseCounts,
    ) -> None:
        self.slot_table, self.readers, self.prefetch = slot_table, readers, prefetch
        self.plan, self.work, self.counts = plan, work, counts
        self.leaving = frozenset(plan.evict)
        slot_of = slot_table.slot_of
        self.requested = set(flat_ids)
        self.present = [flat_id for flat_id in flat_ids if slot_of[flat_id] != ABSENT]
        self.waiting = deque(slot_table.in_file_order(each for each in flat_ids if slot_of[each] == ABSENT))
        """Experts whose load has not begun: those to read first, in the order of the file."""
        self.first = flat_ids[0] - flat_ids[0] % slot_table.experts if flat_ids else 0
        counts.device_hits += len(self.present)

    def begin(self) -> None:
        """Begins to load what is missing, and makes room. What there is a slot for is read as one batch
        before anything leaves, for that may mean a copy to RAM.
        """
        if self.plan.drop:
            self.slot_table.drop_from_ram(self.plan.drop)
        if self.waiting:
            self._load(self._claim_prefetches())
        for flat_id in self.plan.evict:
            if flat_id not in self.requested:
                self._evict(flat_id)
                self._load(at_most=1)
        self._load()

    def finish(self) -> None:
        """Computes all experts, present ones first. Raises ReadFault for an expert that cannot be read."""
        while self.present or self.waiting or self.slot_table.loads.pending:
            if self.present:
                self._compute(self.present.pop(0))
            elif not self._take_arrived():
                break
            if self.waiting:
                self._load()
        assert not self.waiting, "an expert found no slot"

    def _compute(self, flat_id: FlatId) -> None:
        self.work.add(flat_id - self.first, self.slot_table.expert(flat_id))
        if flat_id in self.leaving:
            self._evict(flat_id)

    def _evict(self, flat_id: FlatId) -> None:
        self.slot_table.evict(flat_id, demote=flat_id in self.plan.demote)

    def _claim_prefetches(self) -> list[Load]:
        """The loads of requested experts that are being read ahead: they have their slots."""
        if self.prefetch is None:
            return []
        claimed = {flat_id: self.prefetch.claim(flat_id) for flat_id in self.waiting}
        found = {flat_id: load for flat_id, load in claimed.items() if load is not None}
        self.waiting = deque(flat_id for flat_id in self.waiting if flat_id not in found)
        for flat_id in found:
            self._count_disk(flat_id)
        self.counts.prefetch_hits += len(found)
        return list(found.values())

    def _load(self, claimed: Sequence[Load] = (), at_most: int | None = None) -> None:
        """Begins to load what there is a slot for, in order, as one batch with what was claimed."""
        urgent = list(claimed)
        while self.waiting and at_most != 0:
            flat_id = self.waiting[0]
            if not (self._load_from_ram(flat_id) or self._load_from_disk(flat_id, urgent)):
                break
            self.waiting.popleft()
            at_most = None if at_most is None else at_most - 1
        if urgent:
            self.readers.submit(urgent)

    def _load_from_ram(self, flat_id: FlatId) -> bool:
        table = self.slot_table
        if flat_id not in table.ram_slot_of:
            return False
        if not table.copy_from_ram(flat_id, stays=flat_id not in self.leaving):
            return False
        if flat_id in self.plan.promote:
            table.drop_from_ram([flat_id])
        self.counts.ram_hits += 1
        self.counts.ram_bytes += table.record_bytes(flat_id)
        self.present.append(flat_id)
        return True

    def _load_from_disk(self, flat_id: FlatId, urgent: list[Load]) -> bool:
        table = self.slot_table
        if flat_id in table.ram_slot_of:
            return False
        load = table.start(flat_id, stays=flat_id not in self.leaving)
        if load is None:
            return False
        urgent.append(load)
        self._count_disk(flat_id)
        return True

    def _count_disk(self, flat_id: FlatId) -> None:
        self.counts.disk_loads += 1
        self.counts.disk_bytes += self.slot_table.record_bytes(flat_id)

    def _take_arrived(self) -> bool:
        """Waits for a load of this request; returns whether there was one to wait for."""
        loads = self.slot_table.loads
        if not any(flat_id in self.requested for flat_id in loads.pending):
            return False
        began = perf_counter()
        while True:
            load = loads.arrivals.get()
            pending = loads.pending.get(load.flat_id)
            if load.flat_id in self.requested and pending and pending.load is load:
                break
        self.counts.stall_seconds += perf_counter() - began
        self.slot_table.finish(load.flat_id)
        self.present.append(load.flat_id)
        return True
