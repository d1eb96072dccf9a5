"""Share of the gap: how much of what an optimal policy would add to a baseline another policy adds."""

from collections.abc import Sequence

from dwellmoe.cache.replay.rows import HitRateRow

BASELINES = ("lru", "lfru")
OPTIMUM = "opt"


def gap_share(hit_rate: float, baseline: float, optimum: float) -> float | None:
    """(policy - baseline) / (optimum - baseline) of hit rates; None where there is no gap."""
    return (hit_rate - baseline) / (optimum - baseline) if optimum > baseline else None


def gap_shares(row: HitRateRow, rows: Sequence[HitRateRow]) -> dict[str, float | None]:
    """Baseline -> the row's share of its gap to `opt`, for the baselines of its size in `rows`.

    Empty for a baseline and for the optimum themselves, and where `rows` hold no optimum.
    """
    same = {other.policy: other.hit_rate for other in rows if other.capacity == row.capacity}
    if row.policy == OPTIMUM or OPTIMUM not in same:
        return {}
    return {
        name: gap_share(row.hit_rate, same[name], same[OPTIMUM])
        for name in BASELINES
        if name in same and name != row.policy
    }
