"""`offload(path)`: one call gives a model that generates as transformers' own does."""

from typing import Any

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.offload import engine_of, offload
from tests.offload.workbench import checkpoint, prompt, resident


@pytest.mark.parametrize("options", [{}, {"budget": "3", "policy": "lfu", "ram_budget": "50%"}])
def test_the_tokens_are_those_of_transformers(options):
    model: Any = offload(checkpoint("olmoe"), device="cpu", **options)
    engine = engine_of(model)
    assert engine
    with engine:
        tokens = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(prompt(), **tokens), resident("olmoe").generate(prompt(), **tokens))
        counts, memory = engine.hit_counts, engine.memory
        assert engine.settings.expert_budget == options.get("budget", "25%")
        assert counts.hits + counts.misses == 7 * len(engine.layers) * engine.layers[0].top_k
        assert (memory.ram_bytes > 0) == ("ram_budget" in options) and memory.total_bytes > 0


def test_counts_begin_anew_and_caches_with_reset_alone():
    model: Any = offload(checkpoint("olmoe"), device="cpu")
    engine = engine_of(model)
    assert engine
    with engine:
        model.generate(prompt(), max_new_tokens=4, do_sample=False)
        assert engine.resident(0).sum() == engine.budget.capacity and engine.statistics.decode.tokens == 3
        engine.reset_counts()
        assert sum(engine.hit_counts) == 0 and engine.statistics.decode.tokens == 0
        assert engine.resident(0).any() and engine.loaded_on_device().any()
        engine.reset()
        assert not engine.resident(0).any() and not engine.loaded_on_device().any()


def test_the_type_to_compute_in():
    model: Any = offload(checkpoint("olmoe"), dtype="bfloat16", device="cpu")
    engine = engine_of(model)
    assert engine and model.dtype == torch.bfloat16
    engine.close()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(UserError, match=name):
        offload(name)


def test_an_unknown_option_is_named_with_the_choices():
    with pytest.raises(UserError, match=r"'ram'.*ram_budget"):
        offload(checkpoint("olmoe"), ram="50%")
