"""What decoding uses outside the pool of its prompt, against a slow version."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.cache.replay.prompt_pool import prompt_pool_rows
from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace


def slow(trace, capacity):
    """(accesses outside, all accesses) of each layer, a request and an access at a time."""
    outside, accesses = [0] * trace.layers, [0] * trace.layers
    for request in dict.fromkeys(trace.request.tolist()):
        rows = np.flatnonzero(trace.request == request).tolist()
        for layer in range(trace.layers):
            read, pool, before = [], None, None
            for row in rows:
                chosen = [expert for expert in trace.experts[row, layer].tolist() if expert != EMPTY]
                if trace.phase[row] == PREFILL:
                    read = (read if before == PREFILL else []) + chosen
                    last = {expert: at for at, expert in enumerate(read)}
                    pool = sorted(last, key=lambda e: (read.count(e), last[e]))[-capacity:]
                elif pool is not None:
                    accesses[layer] += len(chosen)
                    outside[layer] += sum(expert not in pool for expert in chosen)
                before = trace.phase[row]
    return outside, accesses


def shuffled_trace(seed):
    """Requests in turn with one another, with several turns, some without a prompt; empty slots."""
    rng = np.random.default_rng(seed)
    trace = random_trace(seed, steps=70, requests=5, prefill=0.4)
    experts = trace.experts.copy()
    experts[rng.random(experts.shape) < 0.1] = EMPTY
    phase = trace.phase.copy()
    phase[rng.random(len(phase)) < 0.15] ^= 1
    phase[trace.request == 2] = DECODE
    return RoutingTrace(experts, phase, rng.permutation(trace.request), trace.num_experts)


@given(st.integers(0, 10**6))
def test_against_a_slow_one(seed):
    trace = shuffled_trace(seed)
    rows = prompt_pool_rows(trace, [4, "50%", 12], resamples=0)
    for row, capacity in zip(rows, (4, 6, 12), strict=True):
        outside, accesses = slow(trace, capacity)
        assert row.capacity == capacity and row.accesses == sum(accesses)
        assert row.outside == pytest.approx(sum(outside) / sum(accesses))
        assert row.layer_outside == pytest.approx(np.divide(outside, accesses).tolist())


def test_a_first_decoded_token_misses_what_is_outside():
    """The hand-off `pool` leaves just these experts in a cold cache."""
    base = random_trace(3, steps=30, requests=1, prefill=0.9)
    first = int((base.phase == PREFILL).sum())
    trace = base.take(slice(0, first + 1))
    (row,) = prompt_pool_rows(trace, [5])
    assert row.outside_ci95 is None and 0 < row.outside < 1
    assert replay_split(trace, "lru", 5, "pool").misses == round(row.outside * row.accesses)


def test_sizes_are_distinct_and_hold_a_token():
    rows = prompt_pool_rows(random_trace(1, requests=6))
    assert [row.capacity for row in rows] == [3, 6]  # 12.5 % of 12 experts is below K
    low, high = rows[0].outside_ci95 or (1, 0)
    assert low <= rows[0].outside <= high


def test_without_an_answered_prompt_there_is_none():
    trace = random_trace(2)
    assert prompt_pool_rows(replace(trace, phase=np.full(trace.steps, DECODE, np.uint8))) == []
    with pytest.raises(UserError, match="capacity"):
        prompt_pool_rows(trace, ["25q"])
