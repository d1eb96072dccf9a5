"""A budget that changes between two requests: the same tokens, counts that go on, nothing half done."""

import gc
import weakref

import pytest

import dwellmoe.offload.resize as resize_module
from dwellmoe.errors import UserError
from dwellmoe.offload import engine_of as engine_behind
from dwellmoe.offload.resize import resize
from tests.offload.workbench import cached, engine_of, present, prompt, resident
from tests.tiny_models import tiny_model


def tokens_of(model) -> list[int]:
    return model.generate(prompt(), max_new_tokens=6, do_sample=False)[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("settings", [{}, {"ram_budget": "6"}, {"decode_policy": "placement"}])
def test_every_budget_gives_the_tokens_of_the_model_in_memory(family, settings):
    model, engine = engine_of(family, **settings)
    with engine:
        for budget in ("100%", "3", "2", "100%", "50%"):
            resize(model, budget)
            assert tokens_of(model) == tokens_of(resident(family))
            assert present(engine) == cached(engine)
            assert engine.settings.expert_budget == budget


def test_capacity_and_memory_are_those_of_an_engine_of_that_budget():
    model, engine = engine_of("olmoe")
    with engine, engine_of("olmoe", expert_budget="5")[1] as other:
        resize(model, "5")
        assert (engine.budget.fields(), engine.memory) == (other.budget.fields(), other.memory)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["100%", "2"])
def test_the_slots_of_before_are_given_back(before):
    model, engine = engine_of("olmoe", expert_budget=before)
    with engine:
        tokens_of(model)
        slots = weakref.ref(engine.cached_experts.slot_table)
        resize(model, "4")
        gc.collect()
        assert slots() is None
        assert all(engine.owns(weight) for name, weight in model.named_parameters() if ".experts." in name)


def test_counts_go_on():
    model, engine = engine_of("olmoe")
    with engine:
        tokens_of(model)
        hits, loads = engine.hit_counts, engine.statistics.decode.disk_loads
        resize(model, "4")
        assert engine.hit_counts == hits
        tokens_of(model)
        now = engine.hit_counts
        assert now.hits + now.misses == 2 * (hits.hits + hits.misses)
        assert engine.statistics.decode.disk_loads > loads


@pytest.mark.parametrize("budget", ["1", "0", "12%", "nothing", "", "1KiB"])
def test_a_budget_that_cannot_work_changes_nothing(budget):
    model, engine = engine_of("olmoe")
    with engine:
        table = engine.cached_experts.slot_table
        with pytest.raises(UserError, match="expert_budget"):
            resize(model, budget)
        assert engine.cached_experts.slot_table is table and engine.settings.expert_budget == "2"


def test_without_memory_for_it_the_budget_stays(monkeypatch):
    model, engine = engine_of("olmoe")
    made = resize_module.make_caches

    def fails_at_first(*given):
        monkeypatch.setattr(resize_module, "make_caches", made)
        raise MemoryError

    with engine:
        monkeypatch.setattr(resize_module, "make_caches", fails_at_first)
        with pytest.raises(MemoryError):
            resize(model, "4")
        assert engine.settings.expert_budget == "2" and engine.budget.capacity == 2
        assert tokens_of(model) == tokens_of(resident("olmoe"))


def test_a_model_in_memory_has_no_budget():
    model = tiny_model("olmoe")
    assert engine_behind(model) is None
    with pytest.raises(UserError, match="all experts are in memory"):
        resize(model, "4")
