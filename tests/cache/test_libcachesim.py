"""Sequential `lru` and `opt` give the hit counts of a general cache simulator's LRU and Belady."""

import numpy as np
import pytest

from dwellmoe.cache.formats import read_trace, write_trace
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

libcachesim = pytest.importorskip("libcachesim")
PAIRS = {"lru": libcachesim.LRU, "opt": libcachesim.Belady}


def decode_only(trace):
    """Without sizes: libcachesim counts room in bytes, so that an expert is one byte."""
    kept = trace.phase == 1
    steps = int(kept.sum())
    return RoutingTrace(
        trace.experts[kept], np.ones(steps, np.uint8), np.zeros(steps, np.int32), trace.num_experts
    )


def their_hits(kind, trace, capacity, tmp_path):
    path = tmp_path / "trace.oracleGeneral"
    write_trace(trace, path)
    reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    missed, _ = kind(cache_size=capacity, hashpower=16).process_trace(reader)
    return round((1 - missed) * trace.experts.size)


@pytest.mark.parametrize("policy", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_random_traces(policy, seed, tmp_path):
    trace = decode_only(random_trace(seed, steps=300))
    for capacity in (4, 10, 20):
        ours = replay(trace, policy, capacity, scope="global", access="sequential").hits
        assert ours == their_hits(PAIRS[policy], trace, capacity, tmp_path)


@pytest.mark.parametrize("policy", PAIRS)
@pytest.mark.parametrize("capacity", [64, 500, 2000])
def test_real_trace(policy, capacity, real_trace_path, tmp_path):
    trace = decode_only(read_trace(real_trace_path))
    ours = replay(trace, policy, capacity, scope="global", access="sequential").hits
    assert ours == their_hits(PAIRS[policy], trace, capacity, tmp_path)
