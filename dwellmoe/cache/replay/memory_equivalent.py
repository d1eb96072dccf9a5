"""Memory equivalent: the cache that one routing would need to miss as seldom as another one does.

Letters: C capacities, R requests, B resamples.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dwellmoe.cache.budget import budget_of
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import RESAMPLES, times_drawn
from dwellmoe.cache.replay.curve import misses_by_capacity
from dwellmoe.cache.replay.replay import misses_by_request
from dwellmoe.cache.replay.sweep import replay_inputs
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError

AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True)
class MemoryEquivalent:
    """Capacity that the base routing needs for the misses a token of another routing at `capacity`.

    `ratio` is `equivalent_capacity` / `capacity`, 1.9 for "worth 1.9x the cache". `bound` says that the true
    ratio is "at least" the one given (the base misses more even with every expert resident) or "at most" (it
    misses less in the smallest cache that holds a token's experts); else it is None. The 95 % interval is cut
    off at the same limits, and None with fewer than two requests.
    """

    policy: str
    capacity: int
    equivalent_capacity: float
    ratio: float
    ratio_ci95: list[float] | None
    bound: str | None

    def as_dict(self) -> dict[str, Any]:
        """The result as one JSON object."""
        return dict(vars(self))


def memory_equivalent(
    trace: RoutingTrace,
    base: RoutingTrace,
    capacity: int | str,
    policy: str = "lru",
    *,
    resamples: int = RESAMPLES,
    **setup: str,
) -> MemoryEquivalent:
    """What the routing of `trace` in a cache of `capacity` is worth in cache for the routing of `base`.

    The base's misses at every capacity (exact; for `lru` by stack distances) are joined by straight lines.
    Where several capacities have the same misses, the nearest to `capacity` counts, so equal traces give 1.
    The interval is a bootstrap over requests, the same ones drawn from both traces.

    `setup`: fields of `CacheSetup`. UserError for traces of unequal numbers of layers, experts or requests,
    and as for `curve`.
    """
    settings = CacheSetup(**setup)
    if (trace.layers, trace.num_experts) != (base.layers, base.num_experts):
        raise UserError(
            f"memory equivalent: the traces hold {trace.layers} and {base.layers} layers of "
            f"{trace.num_experts} and {base.num_experts} experts, but must be of one model"
        )
    slots = budget_of(trace, settings.scope, capacity).capacity
    base_tokens_R, tokens_R = (
        replay_inputs(one, settings, by_request=True).tokens() for one in (base, trace)
    )
    if len(base_tokens_R) != len(tokens_R):
        raise UserError(
            f"memory equivalent: the traces hold {len(tokens_R)} and {len(base_tokens_R)} requests, but must "
            "be of the same ones"
        )
    capacities, misses_CR = misses_by_capacity(base, policy, slots, **setup)
    missed_R = misses_by_request(trace, policy, slots, **setup)
    columns_RX = np.column_stack([misses_CR.T, missed_R, base_tokens_R, tokens_R]).astype(np.float64)
    whole = columns_RX.sum(axis=0, keepdims=True)
    equivalent = float(_matching(whole, capacities, slots)[0])
    missed, smallest, largest = _wanted(whole)[0], whole[0, 0], whole[0, len(capacities) - 1]
    return MemoryEquivalent(
        policy=policy,
        capacity=slots,
        equivalent_capacity=equivalent,
        ratio=equivalent / slots,
        ratio_ci95=_interval(columns_RX, capacities, slots, resamples),
        bound=AT_LEAST if missed < largest else AT_MOST if missed > smallest else None,
    )


def _interval(
    columns_RX: np.ndarray, capacities: np.ndarray, slots: int, resamples: int
) -> list[float] | None:
    requests = len(columns_RX)
    if requests < 2 or not resamples:
        return None
    found = [_matching(times @ columns_RX, capacities, slots) for times in times_drawn(requests, resamples)]
    return (np.percentile(np.concatenate(found), (2.5, 97.5)) / slots).tolist()


def _wanted(sums_BX: np.ndarray) -> np.ndarray:
    """float64 [B]: the misses of the base that are as many a token as those of the other trace."""
    missed, base_tokens, tokens = sums_BX[:, -3:].T
    return missed * (base_tokens / np.maximum(tokens, 1))


def _matching(sums_BX: np.ndarray, capacities: np.ndarray, near: int) -> np.ndarray:
    """float64 [B]: where each curve meets the misses wanted; of several such places the nearest to `near`.

    `sums_BX`: the base's misses at each capacity, the other trace's misses, the tokens of base and other.
    """
    curves_BC = np.minimum.accumulate(sums_BX[:, :-3], axis=1)
    wanted_B = _wanted(sums_BX)
    return np.array(
        [
            matching_capacity(curve, capacities, wanted, near)
            for curve, wanted in zip(curves_BC, wanted_B, strict=True)
        ]
    )


def matching_capacity(misses_C: np.ndarray, capacities_C: np.ndarray, wanted: float, near: float) -> float:
    """The capacity at which a falling curve of misses has `wanted`; on a flat part the nearest to `near`.

    Straight between the points; the smallest or largest capacity for what the curve does not reach.
    """
    falling = -misses_C
    enough = int(
        np.searchsorted(falling, -wanted, side="left")
    )  # the first capacity with at most `wanted` misses
    beyond = int(np.searchsorted(falling, -wanted, side="right"))  # the first with fewer
    least = _between(misses_C, capacities_C, enough, wanted)
    most = _between(misses_C, capacities_C, beyond, wanted)
    return float(min(max(near, least), most))


def _between(misses_C: np.ndarray, capacities_C: np.ndarray, index: int, wanted: float) -> float:
    """Where the line from the point before `index` to that at `index` has `wanted` misses."""
    if index == 0:
        return capacities_C[0]
    if index == len(capacities_C):
        return capacities_C[-1]
    above, below = misses_C[index - 1], misses_C[index]
    share = (above - wanted) / (above - below)
    return capacities_C[index - 1] + share * (capacities_C[index] - capacities_C[index - 1])
