"""Replays a trace as if it had been re-routed: each token chooses again, by what a cache holds.

Letters: S decode rows, L layers, E experts, K chosen a token.
"""

import numpy as np

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import DECODE, EMPTY, SIGNED_EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.routing.history import History
from dwellmoe.routing.strategies import load_strategy
from dwellmoe.routing.strategies.base import RoutingStrategy, in_rows, keeps_weights


def can_reroute(trace: RoutingTrace) -> bool:
    """Whether a trace holds the routers' distributions, and K experts for every token."""
    return trace.gate_probs is not None and not (trace.experts == EMPTY).any()


def rerouted_misses(
    trace: RoutingTrace, spec: str, policy: str, capacity: int, progress: Progress | None = None
) -> np.ndarray:
    """int64 [L]: decode misses of each layer with the routing strategy `spec`, in cold caches of `capacity`.

    The recorded distributions stay as they are: that a changed choice changes what later layers and tokens
    see is left out. A strategy that keeps weights reads the recorded ones, if there are any, else the
    distributions. UserError for an unknown strategy and for a trace without `gate_probs`.
    """
    if not can_reroute(trace):
        raise UserError("re-routing a trace needs gate_probs and no empty slots")
    strategy = load_strategy(spec)
    cache = ExpertCache(policy, layers=trace.layers, experts=trace.num_experts, capacity=capacity)
    rows = np.flatnonzero(trace.phase == DECODE)
    misses_L = np.zeros(trace.layers, np.int64)
    for layer in range(trace.layers):
        misses_L[layer] = _layer_misses(trace, rows, layer, strategy, cache)
        if progress:
            progress(layer + 1, trace.layers)
    return misses_L


def _layer_misses(
    trace: RoutingTrace, rows: np.ndarray, layer: int, strategy: RoutingStrategy, cache: ExpertCache
) -> int:
    assert trace.gate_probs is not None
    score_SE = trace.gate_probs[rows, layer].astype(np.float32)
    with np.errstate(divide="ignore"):
        rank_SE = np.log(score_SE)
    own_SK = trace.experts[rows, layer].astype(np.int64)
    if keeps_weights(strategy) and trace.weights is not None:
        weight_S1 = trace.weights[rows, layer].astype(np.float32).sum(axis=1, keepdims=True)
        own_S1 = score_SE[in_rows(own_SK)].sum(axis=1, keepdims=True)
        score_SE = score_SE * weight_S1 / np.maximum(own_S1, np.finfo(np.float32).tiny)
    history = History(trace.num_experts)
    misses = 0
    for rank_TE, score_TE, own_TK in zip(rank_SE[:, None], score_SE[:, None], own_SK[:, None], strict=True):
        context = history.context(rank_TE, score_TE, own_TK, resident_E=cache.resident(layer), layer=layer)
        chosen_TK = strategy.choose(context)
        history.add_uses(chosen_TK)
        misses += len(cache.request(layer, chosen_TK[chosen_TK != SIGNED_EMPTY]).load)
    return misses
