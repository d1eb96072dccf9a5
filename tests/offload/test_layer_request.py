"""What a layer's request asks of the readers: one batch in the order of the file, and rows that follow."""

from itertools import pairwise

import pytest
import torch

from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.prefetch import Prefetch
from tests.offload.workbench import engine_of, prompt, resident

pytestmark = pytest.mark.slow

ANSWER = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}


@pytest.fixture
def batches(monkeypatch):
    """Flat ids of each batch of urgent loads while decoding, in order."""
    log, submit = [], Readers.submit

    def spy(self, loads, urgent=True):
        if urgent:
            log.append([load.flat_id for load in loads])
        submit(self, loads, urgent)

    monkeypatch.setattr(Readers, "submit", spy)
    return log


@pytest.mark.parametrize("settings", [{}, {"ram_budget": "6"}, {"prefetch_budget": 0}])
def test_the_reads_of_a_request_go_out_as_one_batch_in_file_order(settings, batches):
    model, engine = engine_of("olmoe", expert_budget="2", prefill_buffer=4, **settings)
    with engine, torch.no_grad():
        cached = model(prompt(), use_cache=True).past_key_values
        batches.clear()
        for seed in range(6):
            model(prompt(1, seed=seed), past_key_values=cached, use_cache=True)
        places = [[engine._slot_table.weights.pieces[each][0][:2] for each in ids] for ids in batches]
    layers_of = [{flat_id // engine.layers[0].num_experts for flat_id in ids} for ids in batches]
    assert batches and all(len(layers) == 1 for layers in layers_of)
    assert all(one != other for one, other in pairwise(layers_of))
    if engine.settings.prefetch_budget == 0:
        assert all(each == sorted(each) for each in places) and any(len(each) > 1 for each in places)


@pytest.mark.parametrize("budget", ["2", "4"])
@pytest.mark.parametrize("prefetch_budget", [0, 2, 6])
def test_rows_that_the_cache_cannot_hold_together_are_read_ahead_for_certain(
    budget, prefetch_budget, monkeypatch
):
    """Five rows of two experts each, one or two rows a request."""
    certain, before = [], Prefetch.before_request

    def spy(self, layer, needed):
        before(self, layer, needed)
        certain.append(set(self._prefetched))

    monkeypatch.setattr(Prefetch, "before_request", spy)
    ids = prompt(rows=5)
    model, engine = engine_of("olmoe", expert_budget=budget, prefetch_budget=prefetch_budget)
    with engine:
        assert torch.equal(model.generate(ids, **ANSWER), resident("olmoe").generate(ids, **ANSWER))
        hits, wasted = engine.statistics.decode.prefetch_hits, engine.statistics.prefetch_wasted
        cancelled = engine.statistics.prefetch_cancelled
        issued = engine.statistics.prefetch_issued
    if not prefetch_budget:
        assert not certain and not issued
        return
    read = sum(map(len, certain))
    assert read and hits >= read  # each of them was claimed by the rows it was read for
    assert wasted + cancelled <= issued - read


def test_an_expert_that_is_read_ahead_is_claimed_though_others_wait_for_slots(monkeypatch):
    """The prompt's last experts are predicted, and its first ones fill the buffer."""
    from dwellmoe.offload.prefetch_predictors import NextGatePredictor

    predict_next = NextGatePredictor.predict_next
    monkeypatch.setattr(NextGatePredictor, "predict_next", lambda *given: predict_next(*given)[::-1])
    ids = prompt(24, 3)
    model, engine = engine_of("olmoe", expert_budget="2", prefill_buffer=1, prefetch_budget=2)
    with engine:
        assert torch.equal(model.generate(ids, **ANSWER), resident("olmoe").generate(ids, **ANSWER))
        assert engine.statistics.prefill.prefetch_hits
