"""Random contexts for routing strategies, and files of thresholds."""

import numpy as np

from dwellmoe.cache.weight_ratios import Thresholds, stopping_counts
from dwellmoe.routing.strategies import STRATEGIES
from dwellmoe.routing.strategies.base import NEVER, RoutingContext

EXPERTS, TOP_K, LAYERS = 12, 4, 3


def context(seed=0, rows=3, resident=5, **changes) -> RoutingContext:
    """Softmax routing of `rows` tokens with `resident` of 12 experts in memory."""
    draw = np.random.default_rng(seed)
    rank_TE = draw.normal(size=(rows, EXPERTS)) * 2
    resident_E = np.zeros(EXPERTS, bool)
    resident_E[draw.permutation(EXPERTS)[:resident]] = True
    lag_E = np.where(draw.random(EXPERTS) < 0.3, NEVER, draw.integers(1, 20, EXPERTS))
    lag_E[resident_E & (lag_E == NEVER)] = 7
    score_TE = np.exp(rank_TE) / np.exp(rank_TE).sum(1, keepdims=True)
    own_TK = np.argsort(-rank_TE, axis=1)[:, :TOP_K]
    uses_E = draw.integers(0, 9, EXPERTS)
    found = RoutingContext(rank_TE, score_TE, own_TK, resident_E, lag_E, uses_E, 3.0, 1, 40)
    return found._replace(**changes)


def thresholds_file(folder, value: float, top_k=TOP_K, layers=LAYERS) -> str:
    path = folder / f"thresholds-{value}-{top_k}.json"
    Thresholds("tiny", top_k, [[value] * len(stopping_counts(top_k))] * layers).save(path)
    return str(path)


def specs(folder, threshold: float, top_k=TOP_K, layers=LAYERS) -> dict[str, str]:
    """Name -> spec of every strategy there is."""
    file = thresholds_file(folder, threshold, top_k, layers)
    needs = {name: f"{name}:thresholds={file}" for name in ("des", "odp")}
    return {name: needs.get(name, name) for name in STRATEGIES.names()}
