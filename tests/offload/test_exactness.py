"""With its experts in a cache of any size, a model computes what it computes without one."""

import numpy as np
import pytest
import torch

from tests.offload.workbench import cached, engine_of, present, prompt, resident
from tests.tiny_models import FAMILIES_BY_NAME

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5


def _same_logits(model, family, ids, **inputs):
    with torch.no_grad():
        difference = model(ids, **inputs).logits - resident(family)(ids, **inputs).logits
    assert difference.abs().max() <= TOLERANCE


def _same_greedy(model, family, ids, **options):
    options = {"max_new_tokens": 8, "do_sample": False, **options}
    assert torch.equal(model.generate(ids, **options), resident(family).generate(ids, **options))


@pytest.mark.parametrize("family", FAMILIES_BY_NAME)
@pytest.mark.parametrize("budget", ["2", "50%", "100%"])
def test_every_family_at_every_budget(family, budget):
    model, engine = engine_of(family, expert_budget=budget)
    with engine:
        for seed in (0, 1):
            _same_logits(model, family, prompt(seed=seed))
            _same_greedy(model, family, prompt(9, seed=seed))
        assert present(engine) == cached(engine)


VARIANTS = {
    "buffer of one slot": {"prefill_buffer": 1},
    "buffer that remembers": {"prefill_buffer": 10, "prefill_policy": "lru"},
    "buffer that remembers, small": {"prefill_buffer": 3, "prefill_policy": "fifo"},
    "prompts through the decode cache": {"prefill_handoff": "shared"},
    "no hand-off": {"prefill_handoff": "none"},
    "decaying hand-off": {"prefill_handoff": "lrfu:decay=0.9"},
    "gate-ahead": {"prefetch_budget": 3},
    "gate-ahead, all experts fit": {
        "prefetch_budget": 3,
        "expert_budget": "100%",
        "prefill_handoff": "none",
    },
    "RAM tier": {"ram_budget": "10"},
    "RAM tier, prompts shared": {"ram_budget": "5", "prefill_handoff": "shared", "expert_budget": "3"},
    "RAM tier, remembering buffer, gate-ahead": {
        "ram_budget": "7",
        "prefill_policy": "lru",
        "prefill_buffer": 6,
        "prefetch_budget": 2,
    },
    "one reader": {"readers": 1},
    "buffered": {"io": "buffered"},
    "another policy": {"decode_policy": "lfu"},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_every_way_to_keep_experts(settings):
    model, engine = engine_of("olmoe", **settings)
    with engine:
        for seed in range(3):
            _same_greedy(model, "olmoe", prompt(10, seed=seed), prefill_chunk_size=4 if seed else None)
            assert present(engine) == cached(engine)
        if "ram_budget" in settings:
            in_ram = [engine.in_ram(layer.index) for layer in engine.layers]
            assert np.array_equal(engine.loaded_in_ram(), in_ram) and np.any(in_ram)


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss"])
def test_a_checkpoint_of_another_type(family):
    """bfloat16 on disk, float32 in the slots: through the staging memory that a GPU needs too."""
    model, engine = engine_of(family, dtype=torch.float32)
    with engine:
        assert engine.memory.staging_bytes == 0
    from tests.offload.workbench import checkpoint

    model, engine = engine_of(family, checkpoint(family, torch.bfloat16), prefetch_budget=2)
    with engine, torch.no_grad():
        assert engine.memory.staging_bytes > 0
        expected = resident(family, torch.bfloat16)(prompt()).logits
        assert (model(prompt()).logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("budget", ["2", "4", "100%"])
def test_small_batches(budget):
    """Rows of one step may request more experts than the cache holds; padding runs like any token."""
    model, engine = engine_of("olmoe", expert_budget=budget)
    ids, mask = prompt(7, rows=3), torch.ones(3, 7, dtype=torch.long)
    ids[0, :3], mask[0, :3] = 0, 0
    with engine:
        _same_greedy(model, "olmoe", ids, attention_mask=mask)
        _same_logits(model, "olmoe", ids, attention_mask=mask)


def test_sampling_is_the_same_with_the_same_seed():
    model, engine = engine_of("mixtral")
    options = {"max_new_tokens": 8, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    with engine:
        torch.manual_seed(3)
        mine = model.generate(prompt(), **options)
        torch.manual_seed(3)
        assert torch.equal(mine, resident("mixtral").generate(prompt(), **options))


def test_each_expert_of_a_chunk_is_read_once():
    model, engine = engine_of("olmoe", prefill_handoff="none")
    with engine, torch.no_grad():
        engine.record()
        model(prompt(40))
        trace = engine.trace()
        needed = sum(len(set(trace.experts[:, layer].ravel().tolist())) for layer in range(trace.layers))
        counts = engine.statistics.prefill
        assert (counts.disk_loads, counts.device_hits) == (needed, 0)
        assert counts.disk_bytes == needed * trace.expert_bytes[0]
