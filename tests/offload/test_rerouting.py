"""Re-routing by what an engine truly holds is re-routing by a simulated cache, token for token."""

import numpy as np
import pytest
import torch

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import EMPTY
from dwellmoe.families import find_moe_layers
from dwellmoe.offload import LiveRerouting
from dwellmoe.routing import RouterTap, SimulatedCache
from tests.offload.workbench import engine_of, prompt, resident

pytestmark = pytest.mark.slow

REQUESTS, TOKENS = 2, 8


def generated(model, strategy, describe, rows=1):
    """(token ids, chosen experts of every router call, empty slots as -1) of some requests in a row."""
    layers, texts, chosen = find_moe_layers(model), [], []

    def observe(output):
        ids = output.indices_TK
        chosen.append(torch.where(ids >= output.layer.num_experts, -1, ids).tolist())

    with RouterTap(model, layers, [observe], strategy):
        for seed in range(REQUESTS):
            tokens = prompt(6, rows, seed)
            describe(tokens, seed * rows)
            options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
            texts.append(model.generate(tokens, **options).tolist())
    return texts, chosen


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize(
    "spec", ["cecar", "cecar:fill=drop,tau=1", "mocce", "margin", "own_weight:below=1", "regret"]
)
@pytest.mark.parametrize("policy", ["lru", "lrfu"])
def test_live_is_virtual_token_for_token(family, spec, policy):
    cache = {"policy": policy, "capacity": 4, "prefill_handoff": "recent:tokens=3"}
    plain = resident(family)
    virtual = SimulatedCache(plain, find_moe_layers(plain), spec, **cache)
    expected = generated(
        plain, virtual, lambda ids, at: virtual.describe([at], np.ones(ids.shape), np.zeros(ids.shape))
    )
    settings = {"expert_budget": "4", "decode_policy": policy, "prefill_handoff": cache["prefill_handoff"]}
    model, engine = engine_of(family, **settings)
    with engine:
        engine.record()
        live = LiveRerouting(model, find_moe_layers(model), engine, spec)
        assert generated(model, live, lambda ids, at: None) == expected
        trace, counts = engine.trace(), engine.fields()["decode_cache"]
    hits, misses = np.sum(list(virtual.tallies.values()), axis=(0, 1))[:2]
    assert (counts["hits"], counts["misses"]) == (hits, misses)
    row = replay_split(trace, policy, 4, cache["prefill_handoff"])
    assert (row.hits, row.misses) == (hits, misses)
    assert (trace.experts == EMPTY).any() == ("drop" in spec)


@pytest.mark.parametrize("spec", ["cecar", "margin:loss=1"])
def test_rows_of_a_batch_agree_as_well(spec):
    plain = resident("olmoe")
    cache = {"policy": "lru", "capacity": 4, "prefill_handoff": "none"}
    virtual = SimulatedCache(plain, find_moe_layers(plain), spec, **cache)
    expected = generated(
        plain,
        virtual,
        lambda ids, at: virtual.describe([at, at + 1, at + 2], np.ones(ids.shape), np.zeros(ids.shape)),
        rows=3,
    )
    model, engine = engine_of("olmoe", expert_budget="4", decode_policy="lru", prefill_handoff="none")
    with engine:
        live = LiveRerouting(model, find_moe_layers(model), engine, spec)
        found = generated(model, live, lambda ids, at: None, rows=3)
    assert found == expected
