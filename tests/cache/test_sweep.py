"""A trace replayed in small blocks counts as the whole, and mapped memory stays bounded."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dwellmoe.cache import trace as trace_module
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.reference import reference_counts
from tests.cache.traces import random_trace


@pytest.mark.parametrize("spec", ["lru", "opt", "lopt:horizon=3", "lrfu"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("reset", ["never", "request"])
def test_blocks_do_not_show(spec, scope, reset, monkeypatch):
    trace = random_trace(8, steps=200)
    options = {"scope": scope, "reset": reset, "access": "sequential"}
    whole = replay(trace, spec, 12, **options), curve(trace, [spec], **options)
    monkeypatch.setattr(trace_module, "BLOCK_BYTES", trace.experts.nbytes // 5)
    assert (replay(trace, spec, 12, **options), curve(trace, [spec], **options)) == whole


def test_batch_rows_load_an_expert_once():
    trace = random_trace(9, steps=90, requests=1, prefill=0)
    batched = RoutingTrace(
        trace.experts, trace.phase, trace.request, 12, batch_step=(np.arange(90) // 3).astype(np.int32)
    )
    for spec in ("lru", "opt", "lfu"):
        for access in ("atomic", "sequential"):
            options = {"policy": "opt"} if spec == "opt" else {"policy": spec}
            expected = reference_counts(batched, capacity=9, access=access, **options)
            row = replay(batched, spec, 9, access=access)
            assert (row.hits, row.misses, row.compulsory_misses) == expected
    assert row.hits + row.misses == 90 * 3 * 3
    rows = curve(batched, ["lru", "opt"])
    assert rows[0].capacity > 3
    for row in rows:
        assert row.hits == replay(batched, row.policy, row.capacity).hits


def test_warm_start_counts_the_rest_only():
    trace = random_trace(10, requests=1)
    decode = int((trace.phase == 1).sum())
    row = replay(trace, "lru", 5, start="warm:10")
    assert row.hits + row.misses == (decode - 10) * 9 and row.tokens == decode - 10
    warm = replay(trace, "lru", 12, start="warm:prefill")
    assert warm.hits > replay(trace, "lru", 12).hits
    assert warm.tokens == decode and replay(trace, "lru", 12, start="warm").start == "warm:prefill"


def test_empty_slots_are_no_accesses():
    experts = np.array([[[0, 65535]], [[0, 1]], [[65535, 65535]]], np.uint16)
    trace = RoutingTrace(experts, np.ones(3, np.uint8), np.zeros(3, np.int32), 4)
    row = replay(trace, "lru", 2)
    assert (row.hits, row.misses) == (1, 2)


def test_miss_bytes_and_budgets():
    base = random_trace(11)
    trace = RoutingTrace(base.experts, base.phase, base.request, 12, expert_bytes=(10, 20, 30))
    row = replay(trace, "lru", 6)
    assert row.capacity_bytes == 360 and row.capacity_percent == 50
    assert replay(trace, "lru", "50%").hits == row.hits == replay(trace, "lru", "360B").hits
    accesses = row.tokens * 3
    expected = sum(
        (1 - rate) * accesses * size for rate, size in zip(row.layer_hit_rate, (10, 20, 30), strict=True)
    )
    assert row.miss_bytes_per_token == pytest.approx(expected / row.tokens)
    bytes_row = replay(trace, "lru", "300B", scope="global")
    sizes = [10] * 12 + [20] * 12 + [30] * 12
    assert (bytes_row.hits, bytes_row.misses, bytes_row.compulsory_misses) == reference_counts(
        trace, "lru", 300, scope="global", sizes=sizes
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 2}, "below the 3 experts that one step needs"),
        ({"capacity": 13}, "capacity must be 1 to 12"),
        ({"capacity": 0}, "capacity must be 1 to 12"),
        ({"capacity": "much"}, "give slots (8), percent (25%)"),
        ({"capacity": "1GB"}, "expert_bytes"),
        ({"scope": "all"}, "unknown scope 'all': choose from global, layer"),
        ({"access": "both"}, "unknown access"),
        ({"phase": "train"}, "unknown phase"),
        ({"reset": "often"}, "unknown reset"),
        ({"start": "hot"}, "unknown start"),
        ({"start": "warm:10000"}, "leaves nothing to count"),
        ({"start": "warm:prefill", "phase": "prefill"}, "needs phase 'decode'"),
        ({"phase": "prefill", "capacity": 4}, "needs at once"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError) as error:
        replay(random_trace(12, prefill=0.5), "lru", **({"capacity": 6} | options))
    assert message in str(error.value)


def test_a_phase_that_is_not_there():
    with pytest.raises(UserError, match="no prefill steps"):
        CacheSetup(phase="prefill").passes(random_trace(0, prefill=0))


BLOCK_BYTES = 32 << 20
SCRIPT = f"""
import re, sys
from dwellmoe.cache import trace as trace_module
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
trace_module.BLOCK_BYTES = {BLOCK_BYTES}
def peak_kilobytes():
    return int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
replay(RoutingTrace.load(sys.argv[1]), sys.argv[3], 16)  # compiles
before = peak_kilobytes()
replay(RoutingTrace.load(sys.argv[2]), sys.argv[3], 16)
print(peak_kilobytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the system does not say how much memory was used"
)
def test_resident_memory_does_not_grow_with_the_trace(tmp_path):
    """A trace of several blocks takes less than four times what is mapped at a time."""
    paths = [tmp_path / "short.safetensors", tmp_path / "long.safetensors"]
    for path, steps in zip(paths, (100, 6 * BLOCK_BYTES // (48 * 8 * 2)), strict=True):
        experts = np.tile(np.arange(8, dtype=np.uint16), (steps, 48, 1))
        experts += (np.arange(steps, dtype=np.uint16) % 100)[:, None, None]
        RoutingTrace(experts, np.ones(steps, np.uint8), np.zeros(steps, np.int32), 128).save(path)
    del experts
    for spec in ("lru", "opt"):
        command = [sys.executable, "-c", SCRIPT, *map(str, paths), spec]
        kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert 0 < kilobytes * 1024 < 4 * BLOCK_BYTES
