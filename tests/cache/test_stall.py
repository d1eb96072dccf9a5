"""Device, RAM and disk: what waiting costs, that placement keeps its limits, that GPT-OSS runs through it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dwellmoe.cache.device import DeviceProfile, PlacementConstants, load_device
from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.replay.stall import TransferChannel, stall, stall_lines
from dwellmoe.cache.tiers.tier_policy import TierBudget, make_tier_policy, tier_budget, with_scopes
from dwellmoe.cache.tiers.watermark.placement import DEVICE, RAM, Tier
from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.routing import RouterTap, TraceRecorder
from tests.cache.traces import random_trace
from tests.tiny_models import tiny_model

DEVICE_1 = DeviceProfile(
    "d", 1.0, 1e-3, ram_gb=1.0, ram_gb_per_second=1e-2, storage_latency_us=50, ram_latency_us=5
)
READ, COPY = 50e-6 + 1e-3, 5e-6 + 1e-4  # of 1000 bytes
TIER_POLICIES = (
    "disk",
    "ram",
    "lru",
    "lrfu:decay=0.9",
    "ml_habits",
    "watermark",
    "placement",
    "placement+prefetch",
)


def traced(seed=0, size=1000, **options):
    return random_trace(seed, expert_bytes=(size,) * 3, **({"steps": 60, "prefill": 0.0} | options))


@pytest.mark.parametrize(("tier_policy", "scope"), with_scopes(TIER_POLICIES))
def test_stall_is_a_copy_from_ram_and_a_read_and_a_copy_from_disk(tier_policy, scope):
    row = stall(traced(), DEVICE_1, TierBudget(12_000, 9_000), tier_policy, scope=scope)
    assert row.device_hits + row.ram_hits + row.disk_loads == 60 * 3 * 3
    waited = (row.ram_hits + row.disk_loads) * COPY + row.disk_loads * READ
    late = row.stall_seconds - waited
    assert late == pytest.approx(0, abs=1e-12) or (row.in_flight_waits and late > 0)
    assert row.stall_ms_per_token == pytest.approx(1e3 * row.stall_seconds / 60)
    moved = row.prefetch_hits + row.prefetches_wasted
    assert moved <= row.prefetches and (tier_policy == "placement+prefetch") >= (row.prefetches > 0)
    assert (tier_policy == "ram") == (not row.fits)


@pytest.mark.parametrize("ram_bytes", [0, 1000, 5_000, 30_000])
@pytest.mark.parametrize("rooms", [(0, 0), (2, 3)])
def test_limits_hold_after_every_step(ram_bytes, rooms):
    """RAM may be smaller than the device, or nothing."""
    trace = traced(3, steps=80)
    tiers = Tier(11_000, COPY), Tier(ram_bytes, READ)
    cache = WatermarkCache(trace.expert_bytes, 12, tiers, PlacementConstants())
    for row in trace.experts:
        for layer, asked in enumerate(row):
            before, numbers = cache.placement.tier, asked.astype(int) + layer * 12
            step = cache.request(layer, asked, rooms)
            used = [cache.size[cache.placement.tier == tier].sum() for tier in (DEVICE, RAM)]
            assert used[0] <= 11_000 and used[1] <= ram_bytes
            assert (cache.placement.tier[numbers] == DEVICE).all()
            assert step.hits + len(step.load) == 3
            to_device, to_ram = cache.prefetched(before, numbers.tolist())
            assert len(to_device) <= rooms[0] and len(to_ram) <= rooms[1]
            assert not set(to_device) & set(numbers.tolist())


def test_where_everything_fits_each_expert_is_read_once():
    trace = traced(1)
    row = stall(trace, DEVICE_1, TierBudget(36_000, 0), "placement")
    different = sum(len(np.unique(trace.experts[:, layer])) for layer in range(3))
    assert row.disk_loads == different and row.ram_hits == 0


def test_what_leaves_the_device_waits_in_ram():
    row = stall(traced(1), DEVICE_1, TierBudget(10_000, 26_000), "placement")
    assert row.disk_loads <= 36 and row.ram_hits > 0


def test_prefetch_brings_up_what_follows_for_sure():
    """A cycle of tokens too long for the device: what a layer needs follows from the layer before."""
    ids = np.arange(6)[:, None] * 2 + np.arange(2)
    experts = np.stack([ids, (ids + 4) % 12, (ids + 8) % 12], axis=1).astype(np.uint16)
    trace = RoutingTrace(
        np.tile(experts, (40, 1, 1)),
        np.full(240, DECODE, np.uint8),
        np.zeros(240, np.int32),
        12,
        expert_bytes=(1000,) * 3,
    )
    slow = replace(DEVICE_1, memory_gb_per_second=1e-3)  # a layer computes for 2 ms: twenty copies
    slow = replace(
        slow, placement=PlacementConstants("ewma:alpha=0.05", lookahead="transition", eta=1.0, window=2)
    )
    rows = {
        each: stall(trace, slow, TierBudget(12_000, 36_000), each)
        for each in ("placement", "placement+prefetch")
    }
    ahead = rows["placement+prefetch"]
    assert ahead.prefetch_hits > 0.8 * ahead.prefetches > 100
    assert ahead.stall_seconds < 0.5 * rows["placement"].stall_seconds
    hurried = replace(slow, memory_gb_per_second=1e3)  # no time for anything ahead
    assert stall(trace, hurried, TierBudget(12_000, 36_000), "placement+prefetch").prefetches <= 240 * 3


def test_a_channel_transfers_while_time_passes():
    channel = TransferChannel(1.0)
    assert channel.free_transfers(2.5) == 3 and channel.free_transfers(0.0) == 0
    first, second, third = map(FlatId, (7, 8, 9))
    channel.start(first, 1.0)
    channel.start(second, 1.0)
    channel.run(1.25)
    assert channel.take(first) == 0 and channel.take(second) == 0.75 and channel.take(second) == 0
    channel.start(third, 3.0)
    assert channel.free_transfers(2.0) == 0


@pytest.mark.slow
def test_a_model_of_gpt_oss_runs_through_every_tier_policy():
    model = tiny_model("gpt_oss")
    layers = find_moe_layers(model)
    recorder = TraceRecorder(layers)
    tokens = torch.randint(3, 60, (1, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), RouterTap(model, layers, [recorder]):
        model(tokens)
    recorder.add([0], torch.ones(1, 24), torch.ones(1, 24))
    trace = recorder.trace(expert_bytes=[expert_bytes(model, layer) for layer in layers])
    most = sum(trace.expert_bytes) * 8
    rows = {each: stall(trace, DEVICE_1, TierBudget(most // 2, most // 4), each) for each in TIER_POLICIES}
    assert all(row.tokens == 24 for row in rows.values())
    assert rows["placement"].stall_seconds < rows["disk"].stall_seconds


def test_rooms_are_as_given_or_as_the_profile_has_them():
    trace, half = traced(), replace(DEVICE_1, memory_gb=20e-6, ram_gb=30e-6)
    assert tier_budget(trace, half, 2000) == TierBudget(18_000, 30_000)
    assert tier_budget(trace, half, 0, "50%", "0") == TierBudget(18_000, 0)
    assert tier_budget(trace, half, 0, "5KB", "6") == TierBudget(5_000, 6_000)
    with pytest.raises(UserError, match="does not limit its memory: give --capacity"):
        tier_budget(trace, DEVICE_1, 0)


def test_what_cannot_be_is_told():
    with pytest.raises(UserError, match="needs a trace with expert_bytes"):
        stall(random_trace(0), DEVICE_1, TierBudget(1, 1), "lru")
    with pytest.raises(UserError, match="looks into the future"):
        make_tier_policy(traced(), DEVICE_1, TierBudget(9000, 9000), "opt", "global")
    with pytest.raises(UserError, match="unknown policy 'placements'"):
        stall(traced(), DEVICE_1, TierBudget(9000, 9000), "placements")
    with pytest.raises(UserError, match="the running layer needs 3000 bytes on a device of 2000"):
        stall(traced(), DEVICE_1, TierBudget(2000, 9000), "placement")
    with pytest.raises(UserError, match="hold no expert"):
        stall(traced(), DEVICE_1, TierBudget(500, 9000), "lru", scope="layer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ram_gb = 4.0", "give ram_gb and ram_gb_per_second together"),
        ("[placement]\neta = 2.0", "'eta' must be at most 1"),
        (
            "[placement]\nbeta = 2.0",
            "unknown key 'beta': choose from predictor, lookahead, eta, gamma, window, hysteresis",
        ),
        ("[placement]\ngamma = -1", "'gamma' must be a number >= 0"),
        ("[placement]\nwindow = 0", "'window' must be a number above 0"),
        ("[placement]\nwindow = 1.5", "'window' must be a whole number up to"),
        ("placement = 3", "'placement' must be a table"),
    ],
)
def test_mistakes_in_a_profile_are_named(tmp_path, text, message):
    path = tmp_path / "d.toml"
    path.write_text(f'name = "d"\nmemory_gb_per_second = 1.0\nstorage_gb_per_second = 1.0\n{text}\n')
    with pytest.raises(UserError, match=message):
        load_device(path)


def test_a_table_for_people():
    rows = [
        stall(traced(), DEVICE_1, TierBudget(12_000, 9_000), each)
        for each in ("ram", "lru", "placement+prefetch")
    ]
    lines = stall_lines(rows)
    assert "does not fit" in lines[-1] and "prefetched" in "".join(lines)
