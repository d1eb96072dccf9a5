"""How alike the experts of two groups of tokens are: texts of one category or of several, bands of positions.

The overlap of two groups is the mean over layers of sum_e min(share_e, share'_e), where share_e is expert e's
share of a group's uses: 1 for equal use, 0 for none in common.

Letters: S rows, L layers, E experts, G groups.
"""

from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache.access import PHASES
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.replay.texts import Texts
from dwellmoe.cache.trace import EMPTY, RoutingTrace, release

FEW_WORDS = 0.1  # share of common tokens up to which two texts hardly share words
CANDIDATES = 20_000  # pairs whose texts are compared
PAIRS = 500  # of each kind whose experts are compared
BANDS = (0, 16, 64, 256, 1024, 4096)  # first positions
SEED = 0
NONE = -1


class Pairs(NamedTuple):
    """Pairs of requests with texts that hardly share words."""

    within: np.ndarray  # int64 [pairs, 2]: both of one category
    across: np.ndarray


def word_poor_pairs(texts: Texts) -> Pairs | None:
    """Seeded pairs of requests of known category that share at most a tenth of their distinct tokens.

    All pairs are looked at, or 20,000 drawn ones where there are more; at most 500 of each kind are kept.
    None where no category is known.
    """
    known = np.array([i for i, category in enumerate(texts.categories) if category is not None], np.int64)
    if len(known) == 0:
        return None
    drawn = known[_candidates(len(known))]
    keys = np.unique(_owner(texts) << 32 | (texts.tokens.astype(np.int64) & 0xFFFFFFFF))
    starts = np.searchsorted(keys, np.arange(len(texts) + 1) << 32)
    poor = drawn[_shared_share(keys & 0xFFFFFFFF, starts, drawn) <= FEW_WORDS]
    names = np.unique([category or "" for category in texts.categories], return_inverse=True)[1]
    same = names[poor[:, 0]] == names[poor[:, 1]]
    return Pairs(poor[same][:PAIRS], poor[~same][:PAIRS])


def _candidates(count: int) -> np.ndarray:
    """int64 [pairs, 2]: pairs of numbers below `count`, in an order that is drawn."""
    generator = np.random.default_rng(SEED)
    if count * (count - 1) // 2 <= CANDIDATES:
        return generator.permutation(np.column_stack(np.triu_indices(count, 1)))
    one = generator.integers(0, count, CANDIDATES)
    other = (one + generator.integers(1, count, CANDIDATES)) % count
    pairs = np.sort(np.column_stack([one, other]), axis=1)
    return generator.permutation(np.unique(pairs, axis=0))


def _owner(texts: Texts) -> np.ndarray:
    """int64 [S]: the request of each token."""
    return np.repeat(np.arange(len(texts)), np.diff(texts.starts))


@compiled
def _shared_share(tokens, starts, pairs):
    """float64 [pairs]: distinct tokens that both requests have over those that either has."""
    shares = np.zeros(len(pairs))
    for pair in range(len(pairs)):
        one, one_end = starts[pairs[pair, 0]], starts[pairs[pair, 0] + 1]
        other, other_end = starts[pairs[pair, 1]], starts[pairs[pair, 1] + 1]
        either, both = one_end - one + other_end - other, 0
        while one < one_end and other < other_end:
            first, second = tokens[one], tokens[other]
            both += first == second
            one += first <= second
            other += second <= first
        shares[pair] = both / max(1, either - both)
    return shares


def expert_overlaps(trace: RoutingTrace, texts: Texts | None, phase: str) -> dict[str, Any]:
    """Overlaps in `phase`: of word-poor pairs of requests, and of bands of positions with the first one.

    `pairs` is None for a trace without token ids or categories. A band of few tokens overlaps less by chance.
    """
    pairs = None if texts is None else word_poor_pairs(texts)
    counted = np.isin(trace.phase, PHASES[phase])
    order = np.argsort(trace.request, kind="stable")
    position = _positions(trace.request[order], counted[order])
    band = np.full(trace.steps, NONE, np.int64)
    band[order] = np.where(counted[order], np.searchsorted(BANDS, position, side="right") - 1, NONE)
    wanted = np.unique(np.concatenate(pairs)) if pairs is not None else np.empty(0, np.int64)
    row_request = np.unique(trace.request, return_inverse=True)[1]
    slots = np.full(int(row_request.max()) + 1, NONE, np.int64)
    slots[wanted] = np.arange(len(wanted))
    of_requests = _zeros(len(wanted), trace)
    of_bands = _zeros(len(BANDS), trace)
    _count_uses(trace.experts, np.where(counted, slots[row_request], NONE), band, of_requests, of_bands)
    release(trace.experts)
    return {
        "pairs": None if pairs is None else _pair_rows(pairs, slots, of_requests),
        "bands": _band_rows(of_bands, np.bincount(band[band != NONE], minlength=len(BANDS))),
    }


def _zeros(groups: int, trace: RoutingTrace) -> np.ndarray:
    return np.zeros((groups, trace.layers, trace.num_experts), np.int32)


def _positions(request: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """int64 [S] of rows ordered by request: counted rows of the same request before each."""
    before = np.cumsum(counted) - counted
    return before - before[np.searchsorted(request, request)]


@compiled
def _count_uses(experts, slot, band, of_requests, of_bands):
    for row in range(len(experts)):
        if band[row] < 0:
            continue
        for layer in range(experts.shape[1]):
            for expert in experts[row, layer]:
                if expert != EMPTY:
                    of_bands[band[row], layer, expert] += 1
                    if slot[row] >= 0:
                        of_requests[slot[row], layer, expert] += 1


def overlap(one_LE: np.ndarray, other_LE: np.ndarray) -> float | None:
    """Overlap of two counts of uses; None where either used nothing in some layer."""
    totals = [uses.sum(axis=1, keepdims=True) for uses in (one_LE, other_LE)]
    if not all(total.all() for total in totals):
        return None
    return float(np.minimum(one_LE / totals[0], other_LE / totals[1]).sum(axis=1).mean())


def _pair_rows(pairs: Pairs, slots: np.ndarray, uses_GLE: np.ndarray) -> dict[str, Any]:
    return {name: _mean_overlap(slots[found], uses_GLE) for name, found in pairs._asdict().items()}


def _mean_overlap(pairs: np.ndarray, uses_GLE: np.ndarray) -> dict[str, Any]:
    found = [overlap(uses_GLE[one], uses_GLE[other]) for one, other in pairs.tolist()]
    known = [value for value in found if value is not None]
    return {"pairs": len(known), "overlap": float(np.mean(known)) if known else None}


def _band_rows(uses_GLE: np.ndarray, tokens_G: np.ndarray) -> list[dict[str, Any]]:
    ends = [*BANDS[1:], None]
    return [
        {"from": begin, "below": end, "tokens": int(tokens), "overlap_with_first": overlap(uses_GLE[0], uses)}
        for begin, end, tokens, uses in zip(BANDS, ends, tokens_G.tolist(), uses_GLE, strict=True)
        if tokens
    ]
