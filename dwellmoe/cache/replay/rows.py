"""Hit-rate rows: what a simulated cache counted, with the setup that gives the numbers their meaning.

Letters: C capacities, L layers, R requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwellmoe.cache.budget import Budget
from dwellmoe.cache.intervals import RESAMPLES, Rate, rates
from dwellmoe.cache.kernel.step import COMPULSORY, HITS, MISSES
from dwellmoe.cache.replay.sweep import ReplayInputs

CAPACITIES_AT_ONCE = 16  # whose intervals are computed in one go, which takes memory


@dataclass(frozen=True)
class HitRateRow:
    """Hits and misses of one policy at one capacity, and the `CacheSetup` they were counted with.

    `_ci95` is a 95 % bootstrap interval over requests, None with fewer than two of them; `layer_` is the same
    for each layer [L]. Everything in bytes is None where the trace does not state how large an expert is.
    """

    policy: str
    scope: str
    access: str
    phase: str
    start: str
    reset: str
    capacity: int
    capacity_bytes: int | None
    capacity_percent: float
    hits: int
    misses: int
    compulsory_misses: int
    hit_rate: float
    hit_rate_ci95: list[float] | None
    layer_hit_rate: list[float]
    layer_hit_rate_ci95: list[list[float] | None] | None
    miss_bytes_per_token: float | None
    miss_bytes_per_token_ci95: list[float] | None
    layer_miss_bytes_per_token: list[float] | None
    layer_miss_bytes_per_token_ci95: list[list[float] | None] | None

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


UNKNOWN = Rate(None, None, None, None)


def hit_rate_rows(
    policy: str,
    budgets: Sequence[Budget],
    inputs: ReplayInputs,
    counts_CLR: np.ndarray,
    resamples: int = RESAMPLES,
) -> list[HitRateRow]:
    """A row for each budget.

    `counts_CLR` int64 [C, L, R, 3 or more]: hits, misses, compulsory misses of each request of `inputs`.
    """
    rows = []
    for begin in range(0, len(budgets), CAPACITIES_AT_ONCE):
        part = slice(begin, begin + CAPACITIES_AT_ONCE)
        hit_rates, miss_bytes = _rates(inputs, counts_CLR[part], resamples)
        for found in zip(budgets[part], counts_CLR[part], hit_rates, miss_bytes, strict=True):
            rows.append(_row(policy, inputs, *found))
    return rows


def _row(
    policy: str, inputs: ReplayInputs, budget: Budget, counts_LR: np.ndarray, hit_rate: Rate, miss_bytes: Rate
) -> HitRateRow:
    total = counts_LR.sum(axis=(0, 1))
    return HitRateRow(
        policy=policy,
        **inputs.setup.fields(),
        capacity=budget.capacity,
        capacity_bytes=budget.capacity_bytes,
        capacity_percent=budget.capacity_percent,
        hits=int(total[HITS]),
        misses=int(total[MISSES]),
        compulsory_misses=int(total[COMPULSORY]),
        hit_rate=hit_rate.value,
        hit_rate_ci95=hit_rate.ci95,
        layer_hit_rate=hit_rate.per_layer,
        layer_hit_rate_ci95=hit_rate.per_layer_ci95,
        miss_bytes_per_token=miss_bytes.value,
        miss_bytes_per_token_ci95=miss_bytes.ci95,
        layer_miss_bytes_per_token=miss_bytes.per_layer,
        layer_miss_bytes_per_token_ci95=miss_bytes.per_layer_ci95,
    )


def _rates(inputs: ReplayInputs, counts_CLR: np.ndarray, resamples: int) -> tuple[list[Rate], list[Rate]]:
    """Hit rate and missed bytes a token, each for every capacity."""
    counts_RCL = np.moveaxis(counts_CLR, 2, 0)
    hits_RCL = counts_RCL[..., HITS]
    misses_RCL = counts_RCL[..., MISSES]
    accesses_RL = hits_RCL[:, 0] + misses_RCL[:, 0]
    hit_rates = rates(hits_RCL, accesses_RL, accesses_RL.sum(axis=1), resamples)
    bytes_L = np.array(inputs.trace.expert_bytes, np.int64)
    if not bytes_L.all():
        return hit_rates, [UNKNOWN] * len(hit_rates)
    tokens_R = inputs.tokens()
    tokens_RL = np.repeat(tokens_R[:, None], len(bytes_L), axis=1)
    return hit_rates, rates(misses_RCL * bytes_L, tokens_RL, tokens_R, resamples)
