"""Replays prefill and decode of a trace through a `PrefillDecodeCache`, as a live engine would run them."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.cache.budget import budget_of, check_holds
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.policies.base import check_live_policy
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.rows import HitRateRow, hit_rate_rows
from dwellmoe.cache.replay.sweep import ReplayInputs, replay_inputs
from dwellmoe.cache.tiers.prefill_decode import SHARED, PrefillDecodeCache, prefill_cache_of
from dwellmoe.cache.trace import DECODE, EMPTY, RoutingTrace
from dwellmoe.errors import UserError


@dataclass(frozen=True)
class PrefillDecodeRow(HitRateRow):
    """The decode hit-rate row (start "warm:prefill") of a prefill/decode cache, and what prefill fetched."""

    prefill_handoff: str
    prefill_buffer: int
    prefill_loads: int
    prefill_bytes_per_token: float


def replay_split(
    trace: RoutingTrace,
    policy: str,
    capacity: int | str,
    prefill_handoff: str,
    *,
    access: str = "atomic",
    prefill_buffer: int = 0,
    prefill_policy: str | None = None,
    prefill_slots: int = 0,
    progress: Progress | None = None,
) -> PrefillDecodeRow:
    """Replays prefill and decode through a `PrefillDecodeCache`.

    `prefill_buffer`: slots a layer that the streaming buffer takes; they count as part of `capacity`, so that
    hand-off rules are compared at equal memory. `prefill_policy`: keeps `prefill_slots` experts of all layers
    between chunks, on top of `capacity`.
    """
    inputs = replay_inputs(trace, CacheSetup(access=access, start="warm:prefill"), by_request=True)
    budget = budget_of(trace, "layer", capacity)
    check_live_policy(policy, "--prefill_handoff is replayed as if run live")
    slots = budget.capacity - prefill_buffer
    if prefill_buffer < 0:
        raise UserError(f"prefill_buffer must be at least 0, got {prefill_buffer}")
    check_holds(slots, inputs.setup.min_capacity(trace.top_k))
    if prefill_buffer and prefill_handoff == SHARED:
        raise UserError("prefill_handoff shared has no streaming buffer: leave out prefill_buffer")
    cache = ExpertCache(policy, layers=trace.layers, experts=trace.num_experts, capacity=slots, access=access)
    prefill_cache = prefill_cache_of(trace, prefill_policy, prefill_slots)
    both = PrefillDecodeCache(cache, prefill_handoff, prefill_cache)
    prefill_loads, counts = _run(inputs, both, progress)
    prompt_tokens = max(1, int((trace.phase != DECODE).sum()))
    (row,) = hit_rate_rows(policy, [budget], inputs, counts[None])
    return PrefillDecodeRow(
        **vars(row),
        prefill_handoff=prefill_handoff,
        prefill_buffer=prefill_buffer,
        prefill_loads=int(prefill_loads.sum()),
        prefill_bytes_per_token=float(prefill_loads @ np.array(trace.expert_bytes)) / prompt_tokens,
    )


def _run(
    inputs: ReplayInputs, cache: PrefillDecodeCache, progress: Progress | None
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [L]: experts fetched in prefill; int64 [L, groups, 3] as `_counts`, of what is counted."""
    trace, passes = inputs.trace, inputs.passes
    loads = np.zeros(trace.layers, np.int64)
    before = _counts(cache.decode_cache)
    counts = np.zeros((trace.layers, inputs.groups, before.shape[1]), np.int64)
    for i, group in enumerate(inputs.group):
        rows = trace.experts[passes.begin[i] : passes.end[i]]
        loads += _run_pass(cache, rows, passes.phase[i])
        if i + 1 == len(passes) or inputs.group[i + 1] != group:
            after = _counts(cache.decode_cache)
            counts[:, group] += after - before
            before = after
        if progress:
            progress(i + 1, len(passes))
    return loads, counts[:, :-1]


def _run_pass(cache: PrefillDecodeCache, rows: np.ndarray, phase: int) -> np.ndarray:
    """int64 [L]: experts fetched, in prefill."""
    loads = np.zeros(rows.shape[1], np.int64)
    for layer in range(rows.shape[1]):
        experts = rows[:, layer]
        if phase == DECODE:
            cache.request(layer, experts[experts != EMPTY])
        else:
            loads[layer] = len(cache.prefill(layer, experts).load)
    return loads


def _counts(cache: ExpertCache) -> np.ndarray:
    """int64 [L, 3]: hits, misses, compulsory misses."""
    counts = [cache.counts(layer) for layer in range(cache.layers)]
    return np.array([[layer["hits"], layer["misses"], layer["compulsory_misses"]] for layer in counts])
