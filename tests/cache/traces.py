"""Small random traces for the tests, and what a live cache counts as taken."""

import numpy as np

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.kernel.step import USED
from dwellmoe.cache.policies.base import parse_policy, policy_names
from dwellmoe.cache.trace import DECODE, RoutingTrace

NEEDS_WEIGHTS = {"static"}  # no file is shipped: it counts the uses in a trace of the user's
POLICIES = [name for name in policy_names() if name not in NEEDS_WEIGHTS]
LIVE_POLICIES = [name for name in POLICIES if parse_policy(name)[0].lookahead == "none"]


def random_trace(seed=0, steps=60, layers=3, top_k=3, experts=12, requests=3, prefill=0.3, **fields):
    """Zipf-like routing with some memory; requests in order, each with a prompt first."""
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(experts, 0.6), size=layers) + 1e-3
    chosen = np.empty((steps, layers, top_k), np.uint16)
    for step in range(steps):
        for layer in range(layers):
            weight = popularity[layer] / popularity[layer].sum()
            chosen[step, layer] = rng.choice(experts, top_k, replace=False, p=weight)
            if step and rng.random() < 0.4:
                chosen[step, layer] = rng.permutation(chosen[step - 1, layer])
    request = np.sort(rng.integers(0, requests, steps)).astype(np.int32)
    first = np.searchsorted(request, request)
    length = np.bincount(request, minlength=requests)[request]
    phase = (np.arange(steps) - first >= prefill * length).astype(np.uint8)
    return RoutingTrace(chosen, phase, request, experts, **fields)


def sticky_trace(rng, requests=30, tokens=12, stay=0.5, experts=12, top_k=2, layers=2):
    """A trace of equally long requests; a layer keeps its set for the next token with a chance of `stay`."""
    rows = np.arange(requests * tokens)[:, None]
    sets = rng.random((len(rows), layers, experts)).argsort(axis=2)[..., :top_k].astype(np.uint16)
    moved = rng.random((len(rows), layers)) > stay
    chosen = sets[np.maximum.accumulate(np.where(moved, rows, 0)), np.arange(layers)]
    request = np.repeat(np.arange(requests, dtype=np.int32), tokens)
    return RoutingTrace(chosen, np.full(len(chosen), DECODE, np.uint8), request, experts)


def used(cache: ExpertCache) -> int:
    """Slots or bytes that a live cache counts as taken, in all layers together."""
    taken = cache._residency.totals[:, USED]
    return sum(int(one) for one, cold in zip(taken, cache._cold, strict=True) if not cold)
