"""Parts of a stream that run at the same time leave the counts and the cache that they leave in turn."""

import numpy as np
import pytest

from dwellmoe.cache.kernel import side_by_side
from dwellmoe.cache.policies.base import parse_policy, policy_names
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.sweep import PARTS
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

FORGETFUL = [name for name in policy_names() if getattr(parse_policy(name)[0], "FORGETS", False)]


@pytest.fixture
def begun(monkeypatch):
    """Cuts streams into three parts however short they are; tells how many parts each had."""
    counts: list[int] = []
    plain = side_by_side._begins

    def count(stream, residency):
        counts.append(len(found := plain(stream, residency)))
        return found

    monkeypatch.setattr(side_by_side.os, "cpu_count", lambda: 3)
    monkeypatch.setattr(side_by_side, "_begins", count)
    return counts


@pytest.mark.parametrize("spec", FORGETFUL)
@pytest.mark.parametrize("access", ["atomic", "sequential"])
@pytest.mark.parametrize("reset", ["never", "request"])
@pytest.mark.parametrize("phase", ["decode", "all"])
def test_same_rows(spec, access, reset, phase, begun, monkeypatch):
    if phase == "all" and access == "atomic":
        access = "sequential"
    for seed in range(4):
        trace = random_trace(seed, steps=400, requests=4)
        for capacity in (9, 20, 36):
            row = replay(trace, spec, capacity, scope="global", access=access, reset=reset, phase=phase)
            monkeypatch.setattr(side_by_side, "LEAST_ACCESSES", 1 << 60)
            whole = replay(trace, spec, capacity, scope="global", access=access, reset=reset, phase=phase)
            monkeypatch.setattr(side_by_side, "LEAST_ACCESSES", 1)
            assert row == whole
    assert max(begun) == 3


def test_blocks_follow_one_another(begun, monkeypatch):
    trace = random_trace(1, steps=400)
    whole = replay(trace, "lru", 12, scope="global")
    monkeypatch.setattr("dwellmoe.cache.trace.BLOCK_BYTES", PARTS * 60 * trace.experts[0].nbytes)
    monkeypatch.setattr(side_by_side, "LEAST_ACCESSES", 1)
    assert replay(trace, "lru", 12, scope="global") == whole and len(begun) > 3 and max(begun) == 3


def test_what_does_not_fit_is_told_as_before(begun, monkeypatch):
    trace = random_trace(2, steps=400, batch_step=(np.arange(400) // 8).astype(np.int32))
    said = []
    for least in (1, 1 << 60):
        monkeypatch.setattr(side_by_side, "LEAST_ACCESSES", least)
        with pytest.raises(UserError) as error:
            replay(trace, "lru", 7, scope="global")
        said.append(str(error.value))
    assert said[0] == said[1]
