"""What is read ahead, over residents that load at once."""

from threading import Event
from types import SimpleNamespace
from typing import Any

import torch

from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.prefetch_predictors import GateForesight
from dwellmoe.offload.slot_table import ABSENT
from dwellmoe.offload.statistics import Statistics

EXPERTS, FORESEEN = 8, 3
NUMBER = EXPERTS + FORESEEN  # of layer 1


class LoadedAtOnce:
    """SlotTable none of whom is near; every read that is begun is done."""

    experts = EXPERTS

    def __init__(self) -> None:
        self.slot_of, self.ram_slot_of = [ABSENT] * 2 * EXPERTS, {}
        self.loading: dict[int, Any] = {}
        self.dropped, self.arrivals = {}, SimpleNamespace(put=lambda load: None)

    def collect(self) -> None: ...

    def start(self, number: int) -> Any:
        load = SimpleNamespace(nbytes=10, arrived=Event())
        self.loading[number] = (load,)
        return load

    def drop(self, number: int) -> bool:
        return bool(self.loading.pop(number))


def prefetch_of(residents: LoadedAtOnce, slots: int = 2) -> Prefetch:
    gate = SimpleNamespace(forward=lambda hidden_TD: (None, None, torch.tensor([[FORESEEN]])))
    readers: Any = SimpleNamespace(submit=lambda loads, urgent: None, hurry=lambda load: None)
    given: Any = residents
    return Prefetch(given, readers, GateForesight([gate, gate], EXPERTS), slots, Statistics())


def test_what_the_next_gate_foresees_is_read_and_claimed():
    residents = LoadedAtOnce()
    prefetch = prefetch_of(residents)
    prefetch.turn_to(0, torch.zeros(1, 4), [0])
    assert list(residents.loading) == [NUMBER]
    assert prefetch.claim(NUMBER) and not prefetch.claim(NUMBER)


def test_what_was_read_in_vain_is_not_read_ahead_again_until_asked_for():
    residents, hidden_TD = LoadedAtOnce(), torch.zeros(1, 4)
    prefetch = prefetch_of(residents)
    for _ in range(3):  # tokens whose second layer asks for somebody else
        prefetch.turn_to(0, hidden_TD, [0])
        prefetch.turn_to(1, hidden_TD, [0])
    assert (prefetch.statistics.prefetch_issued, prefetch.statistics.prefetch_wasted) == (1, 1)
    assert not prefetch.claim(NUMBER)
    prefetch.turn_to(0, hidden_TD, [0])
    assert list(residents.loading) == [NUMBER]


def test_no_more_is_read_ahead_than_there_are_slots():
    residents = LoadedAtOnce()
    prefetch_of(residents, slots=0).turn_to(0, torch.zeros(1, 4), [0])
    assert not residents.loading
