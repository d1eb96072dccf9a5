"""Watermark placement in the engine: the same text, caches that agree with slots, the simulator's moves."""

import numpy as np
import pytest
import torch

from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.cache.tiers.watermark.live import WatermarkDevice
from dwellmoe.cache.trace import DECODE
from dwellmoe.errors import UserError
from dwellmoe.offload import EngineSettings
from dwellmoe.offload.check_settings import check_settings
from tests.offload.workbench import cached, engine_of, present, prompt, resident


def in_ram(engine):
    """Flat ids of the experts in RAM: by the caches, and by their weights."""
    by_cache = np.concatenate([engine.in_ram(layer.index) for layer in engine.layers])
    return set(np.flatnonzero(by_cache).tolist()), set(np.flatnonzero(engine.loaded_in_ram()).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("settings", [
    {"ram_budget": "6"},
    {"ram_budget": "3", "prefill_handoff": "none", "expert_budget": "3"},
    {"prefetch_budget": 2, "prefill_handoff": "lrfu:decay=0.9"},
    {"expert_budget": "100%"},
])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 2])
def test_text_and_books(family, settings, rows):
    model, engine = engine_of(family, decode_policy="placement", **settings)
    with engine:
        for seed in range(2):
            ids = prompt(9, rows, seed)
            options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
            assert torch.equal(model.generate(ids, **options), resident(family).generate(ids, **options))
            assert present(engine) == cached(engine)
            by_cache, by_weights = in_ram(engine)
            assert by_cache == by_weights
            assert bool(by_weights) or "ram_budget" not in settings
        slots = sum(map(len, present(engine)))
        assert slots <= len(engine.layers) * engine.budget.capacity
        engine.reset()
        assert not any(present(engine)) and not any(cached(engine))


def test_the_simulator_makes_the_same_moves(monkeypatch):
    log, decide = [], LiveCache.request

    def spy(self, layer, experts):
        plan = decide(self, layer, experts)
        log.append((list(plan.load), set(plan.promote), set(plan.evict), set(plan.demote)))
        return plan

    monkeypatch.setattr(LiveCache, "request", spy)
    model, engine = engine_of("olmoe", decode_policy="placement", prefill_handoff="none", ram_budget="6")
    with engine:
        engine.record()
        for seed in range(3):
            model.generate(prompt(9, 1, seed), max_new_tokens=10, do_sample=False, eos_token_id=None)
        trace, counts = engine.trace(), engine.fields()["decode_cache"]
    replayed, moves = WatermarkDevice(trace.layers, trace.num_experts, 2, 6), []
    for row in np.flatnonzero(trace.phase == DECODE):
        for layer in range(trace.layers):
            before = replayed.tier.copy()
            step = replayed.request(layer, trace.experts[row, layer].tolist())
            left = set(step.evict)
            up = {flat_id for flat_id in step.load if before[flat_id] == 1}
            moves.append((step.load, up, left, {n for n in left if replayed.tier[n] == 1}))
    assert log == moves and any(up for _, up, _, _ in moves) and any(down for *_, down in moves)
    assert replayed.counts()["hits"] == counts["hits"] and replayed.counts()["misses"] == counts["misses"]


def test_an_expert_can_be_taken_off_the_books():
    device = WatermarkDevice(2, 4, 2, ram_slots=2)
    device.request(0, [0, 1, 2])
    assert device.remove(0, 1) and not device.remove(0, 1)
    assert device.resident(0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("other", [{"prefill_policy": "lru"}, {"prefill_handoff": "shared"}])
def test_settings_that_placement_excludes_are_refused(other):
    with pytest.raises(UserError, match="--decode_policy placement: leave out"):
        check_settings(EngineSettings(decode_policy="placement", **other))
