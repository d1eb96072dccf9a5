"""The simulator, fed with what a live run recorded, does what the live run did."""

import numpy as np
import pytest
import torch

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.tiers.live import LiveCache
from dwellmoe.cache.trace import DECODE
from tests.cache.traces import LIVE_POLICIES
from tests.offload.workbench import engine_of, prompt

pytestmark = pytest.mark.slow


@pytest.fixture
def plans(monkeypatch):
    """Every (layer, loads, evictions) of decode steps, in order."""
    log, decide = [], LiveCache.request

    def spy(self, layer, experts):
        plan = decide(self, layer, experts)
        log.append((layer, list(plan.load), sorted(plan.evict)))
        return plan

    monkeypatch.setattr(LiveCache, "request", spy)
    return log


def _run(engine, model, rows=1, requests=3):
    engine.record()
    for seed in range(requests):
        model.generate(prompt(9, rows, seed), max_new_tokens=10, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_loads_and_evictions_in_order(policy, plans):
    model, engine = engine_of("olmoe", expert_budget="3", decode_policy=policy, prefill_handoff="none")
    with engine:
        _run(engine, model)
        trace = engine.trace()
    cache = ExpertCache(policy, layers=trace.layers, experts=trace.num_experts, capacity=3)
    replayed = []
    for row in np.flatnonzero(trace.phase == DECODE):
        for layer in range(trace.layers):
            step = cache.request(layer, trace.experts[row, layer])
            replayed.append((layer, list(step.load), sorted(step.evict)))
    assert plans == replayed
    row = replay(trace, policy, 3, phase="decode")
    counts = engine.fields()["decode_cache"]
    assert all(counts[name] == getattr(row, name) for name in ("hits", "misses", "evictions", "hit_rate"))


@pytest.mark.parametrize("settings", [
    {"prefill_handoff": "recent:tokens=3"},
    {"prefill_handoff": "lrfu:decay=0.9", "prefetch_budget": 2},
    {"prefill_handoff": "shared"},
    {"prefill_handoff": "pool", "prefetch_budget": 2},
    {"prefill_policy": "lru", "prefill_buffer": 7},
    {"expert_budget": "100%"},
])  # fmt: skip
@pytest.mark.parametrize("rows", [1, 2])
def test_both_phases(settings, rows, plans):
    model, engine = engine_of("qwen3_moe", **{"expert_budget": "4", **settings})
    with engine:
        _run(engine, model, rows)
        trace, fields = engine.trace(), engine.fields()
    policy, slots = settings.get("prefill_policy"), settings.get("prefill_buffer", 0)
    prefill_handoff = settings.get("prefill_handoff", "recent:tokens=8")
    row = replay_split(
        trace, "lru", engine.budget.capacity, prefill_handoff, prefill_policy=policy, prefill_slots=slots
    )
    for name in ("hits", "misses", "compulsory_misses", "hit_rate"):
        assert fields["decode_cache"][name] == getattr(row, name)
    assert fields["prefill"]["disk_loads"] == row.prefill_loads or prefill_handoff == "shared"
    assert fields["decode"]["tokens"] == rows * 9 * 3


@pytest.mark.parametrize("chunk", [None, 4])
def test_decoding_begins_with_the_experts_that_the_prompt_used_most(chunk, plans):
    model, engine = engine_of("olmoe", expert_budget="3", prefill_handoff="pool")
    with engine:
        engine.record()
        options = {"do_sample": False, "eos_token_id": None, "prefill_chunk_size": chunk}
        model.generate(prompt(11), max_new_tokens=4, **options)
        trace, counts = engine.trace(), engine.fields()["decode_cache"]
    row = replay_split(trace, "lru", 3, "pool")
    assert (counts["hits"], counts["misses"]) == (row.hits, row.misses)
    read = trace.experts[trace.phase != DECODE]
    first = trace.experts[np.flatnonzero(trace.phase == DECODE)[0]]
    assert len(read) == 11
    for layer, loads, _ in plans[: trace.layers]:
        used = read[:, layer].ravel().tolist()
        last = {expert: at for at, expert in enumerate(used)}
        pool = sorted(last, key=lambda expert: (used.count(expert), last[expert]))[-3:]
        found = {expert - layer * trace.num_experts for expert in loads}
        assert found == set(first[layer].tolist()) - set(pool)


def test_a_trace_of_decoding_has_the_ecr_of_its_text():
    """Recorded by the engine or by the tap on the routers: the same routing."""
    from dwellmoe.cache.metrics import ecr
    from dwellmoe.families import find_moe_layers
    from dwellmoe.routing import RouterTap, TraceRecorder

    model, engine = engine_of("deepseek_v3", decode_policy="lfu")
    with engine:
        layers = find_moe_layers(model)
        recorder = TraceRecorder(layers)
        engine.record()
        with RouterTap(model, layers, [recorder]):
            ids = prompt(9)
            generated = model.generate(ids, max_new_tokens=10, do_sample=False, eos_token_id=None)
        recorder.add_generated([0], torch.ones_like(ids), generated, [10])
        tapped, trace = recorder.trace(), engine.trace()
    assert np.array_equal(tapped.experts, trace.experts) and np.array_equal(tapped.phase, trace.phase)
    assert ecr(tapped).value == ecr(trace).value
