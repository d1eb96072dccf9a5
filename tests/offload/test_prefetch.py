"""Prefetches, over a slot table that loads at once."""

from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.offload.prefetch import Prefetch
from dwellmoe.offload.slot_table import ABSENT
from dwellmoe.offload.statistics import Statistics
from tests.offload.workbench import engine_of, prompt, resident

pytestmark = pytest.mark.slow

EXPERTS, PREDICTED = 8, 3
FLAT_ID = FlatId(EXPERTS + PREDICTED)  # of layer 1


class LoadedAtOnce:
    """A `SlotTable` without any expert, whose loads arrive at once."""

    experts = EXPERTS

    def __init__(self) -> None:
        self.slot_of, self.ram_slot_of = [ABSENT] * 2 * EXPERTS, {}
        self.loads = SimpleNamespace(
            pending={}, cancelled=[], arrivals=SimpleNamespace(put=lambda load: None)
        )

    def reclaim(self) -> None: ...

    def in_file_order(self, flat_ids: list[int]) -> list[int]:
        return sorted(flat_ids)

    def start(self, flat_id: int) -> Any:
        load = SimpleNamespace(nbytes=10, arrived=Event())
        self.loads.pending[flat_id] = SimpleNamespace(load=load)
        return load

    def cancel(self, flat_id: int) -> bool:
        return bool(self.loads.pending.pop(flat_id))


def prefetch_of(table: LoadedAtOnce, slots: int = 2) -> Prefetch:
    predictor: Any = SimpleNamespace(predict_next=lambda layer, requested: [PREDICTED] if layer == 0 else [])
    readers: Any = SimpleNamespace(submit=lambda loads, urgent: None)
    given: Any = table
    return Prefetch(given, readers, predictor, slots, Statistics())


def test_what_is_predicted_is_read_and_claimed():
    table = LoadedAtOnce()
    prefetch = prefetch_of(table)
    prefetch.after_request(0, [0])
    assert list(table.loads.pending) == [FLAT_ID]
    assert prefetch.claim(FLAT_ID) and not prefetch.claim(FLAT_ID)


def test_a_wasted_prefetch_is_not_repeated_until_the_expert_is_requested():
    table = LoadedAtOnce()
    prefetch = prefetch_of(table)
    for _ in range(3):  # tokens whose second layer requests another expert
        prefetch.after_request(0, [0])
        prefetch.after_request(1, [0])
    assert (prefetch.statistics.prefetch_issued, prefetch.statistics.prefetch_wasted) == (1, 1)
    assert not prefetch.claim(FLAT_ID)
    prefetch.after_request(0, [0])
    assert list(table.loads.pending) == [FLAT_ID]


def test_what_another_request_needs_for_certain_is_read_though_it_was_wasted():
    table = LoadedAtOnce()
    prefetch = prefetch_of(table)
    prefetch.after_request(0, [0])
    prefetch.after_request(1, [0])
    prefetch.before_request(1, [PREDICTED, 5, 6])
    assert list(table.loads.pending) == [FLAT_ID, EXPERTS + 5]
    assert prefetch.claim(FLAT_ID)


def test_no_more_is_prefetched_than_there_are_slots():
    table = LoadedAtOnce()
    prefetch_of(table, slots=0).after_request(0, [0])
    assert not table.loads.pending


@pytest.mark.parametrize("family", ["afmoe", "hy_v3", "lfm2_moe", "minimax_m2", "zaya"])
def test_a_gate_that_takes_more_than_hidden_states_predicts(family):
    """A bias of its block, or what the gate before it kept."""
    model, engine = engine_of(family, expert_budget="50%", prefetch_budget=2)
    with engine, torch.no_grad():
        logits = [model(prompt(rows=2)).logits for model in (model, resident(family))]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-6)
        model.generate(prompt(), max_new_tokens=4, do_sample=False)
        assert engine.statistics.prefetch_issued
