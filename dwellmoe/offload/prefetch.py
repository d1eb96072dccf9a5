"""Knows how to read experts of the next layer ahead; does not know who foresees them, nor what the cache will
make of them.

What is read ahead lies in slots of its own and is in nobody's books: a step that asks for it loads it as
always, only without waiting. Letters: T tokens, D hidden size.
"""

from collections.abc import Sequence

from torch import Tensor

from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.prefetch_predictors import PrefetchPredictor
from dwellmoe.offload.slot_table import ABSENT, SlotTable
from dwellmoe.offload.statistics import Statistics


class Prefetch:
    """Reads at most `slots` experts ahead. One that was read for nothing is not read ahead again until a step
    has asked for it.
    """

    def __init__(
        self,
        residents: SlotTable,
        readers: Readers,
        prefetch_predictor: PrefetchPredictor,
        slots: int,
        statistics: Statistics,
    ) -> None:
        self.residents, self.readers, self.prefetch_predictor = residents, readers, prefetch_predictor
        self.slots, self.statistics = slots, statistics
        self._ahead: set[int] = set()
        self._in_vain: set[int] = set()

    def turn_to(self, layer: int, hidden_TD: Tensor, asked: Sequence[int]) -> None:
        """`layer` has claimed what it needs, `asked`: the rest is called off, the next layer is looked at."""
        if self._ahead:
            self.drop_others()
        if predicted := self.prefetch_predictor.look(layer, hidden_TD, asked):
            first = (layer + 1) * self.residents.experts
            self._read([first + expert for expert in predicted])

    def _read(self, numbers: Sequence[int]) -> None:
        """Begins to read the first of `numbers` that are not near, behind all that is urgent."""
        self.residents.collect()
        loads = []
        for number in numbers:
            if len(self._ahead) + len(self.residents.dropped) == self.slots:
                break
            if number in self._in_vain or self._is_near(number):
                continue
            load = self.residents.start(number)
            if load is None:
                break
            self._ahead.add(number)
            loads.append(load)
        if loads:
            self.statistics.prefetch_issued += len(loads)
            self.readers.submit(loads, urgent=False)

    def _is_near(self, number: int) -> bool:
        residents = self.residents
        return (
            residents.slot_of[number] != ABSENT
            or number in residents.ram_slot_of
            or number in residents.loading
        )

    def claim(self, number: int) -> bool:
        """Whether `number`, which a step asks for, was read ahead; it is the step's then, and urgent."""
        self._in_vain.discard(number)
        if number not in self._ahead:
            return False
        self._ahead.discard(number)
        load = self.residents.loading[number][0]
        self.readers.hurry(load)
        if load.arrived.is_set():
            self.residents.arrivals.put(load)  # its first arrival may have been passed over
        return True

    def drop_others(self) -> None:
        """Calls off what was read ahead and not asked for."""
        for number in sorted(self._ahead):
            nbytes = self.residents.loading[number][0].nbytes
            if self.residents.drop(number):
                self._in_vain.add(number)
                self.statistics.prefetch_wasted += 1
                self.statistics.prefetch_wasted_bytes += nbytes
            else:
                self.statistics.prefetch_cancelled += 1
        self._ahead.clear()

    def forget(self) -> None:
        """The loads were called off by somebody else."""
        self._ahead.clear()
