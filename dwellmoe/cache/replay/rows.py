"""Knows how counted hits and misses become rows of results; does not count.

Letters: C capacities, L layers, R requests.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.budget import Budget
from dwellmoe.cache.intervals import RESAMPLES, rates
from dwellmoe.cache.kernel.step import COMPULSORY, HITS, MISSES
from dwellmoe.cache.replay.sweep import Lanes

TOGETHER = 16  # capacities whose intervals are found in one go, which takes memory


def hit_rate_rows(
    policy: str,
    budgets: Sequence[Budget],
    lanes: Lanes,
    counts_CLR: np.ndarray,
    resamples: int = RESAMPLES,
) -> list[dict]:
    """A row for each budget, with the rates of each layer and 95 % intervals (None with one request).

    `counts_CLR` int64 [C, L, R, 3 or more]: hits, misses, compulsory misses; `lanes` has its requests apart.
    What misses cost is None where the trace does not say how large an expert is.
    """
    rows = []
    for begin in range(0, len(budgets), TOGETHER):
        part = slice(begin, begin + TOGETHER)
        found = _rates(lanes, counts_CLR[part], resamples)
        for budget, counts_LR, fields in zip(budgets[part], counts_CLR[part], found, strict=True):
            rows.append(_row(policy, budget, lanes, counts_LR.sum(axis=(0, 1))) | fields)
    return rows


def _row(policy: str, budget: Budget, lanes: Lanes, total: np.ndarray) -> dict:
    kinds = {"hits": HITS, "misses": MISSES, "compulsory_misses": COMPULSORY}
    counts = {name: int(total[kind]) for name, kind in kinds.items()}
    return {"policy": policy, **lanes.convention.fields(), **budget.fields(), **counts}


def _rates(lanes: Lanes, counts_CLR: np.ndarray, resamples: int) -> list[dict]:
    """The fields of each capacity that are ratios."""
    counts_RCL = np.moveaxis(counts_CLR, 2, 0)
    hits_RCL, misses_RCL = counts_RCL[..., HITS], counts_RCL[..., MISSES]
    asked_RL = hits_RCL[:, 0] + misses_RCL[:, 0]
    hit_rate = rates("hit_rate", hits_RCL, asked_RL, asked_RL.sum(axis=1), resamples)
    sizes_L, tokens_R = np.array(lanes.trace.expert_bytes, np.int64), lanes.tokens()
    tokens_RL = np.repeat(tokens_R[:, None], len(sizes_L), axis=1)
    fetched = rates("miss_bytes_per_token", misses_RCL * sizes_L, tokens_RL, tokens_R, resamples)
    if not sizes_L.all():
        fetched = [dict.fromkeys(row) for row in fetched]
    return [one | other for one, other in zip(hit_rate, fetched, strict=True)]
