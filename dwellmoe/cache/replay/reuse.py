"""How soon and how unevenly experts are used again: reuse distance, hot sets, SRP and SCH.

Letters: L layers, K experts chosen, E routed experts a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES, Stream
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import rates
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.sweep import replay_inputs, sweep
from dwellmoe.cache.trace import EMPTY, RoutingTrace

LONGEST_GAP = 4096  # token steps counted one by one; longer ones together
HOT_PERCENT = (5, 10, 25, 50)
WINDOWS = (1, 2, 4, 8, 16, 32, 64)


class Gaps:
    """A simulation that counts token steps between uses of an expert, and uses of each expert."""

    needs_future = False

    def __init__(self, layers: int, experts: int) -> None:
        self.last = np.full((layers, experts), -1, np.int64)
        self.uses = np.zeros((layers, experts), np.int64)
        # [0]: first uses; [LONGEST_GAP]: that gap and longer ones
        self.histogram = np.zeros((layers, LONGEST_GAP + 1), np.int64)

    def feed(self, cache_index: int, stream: Stream) -> None:
        _count_gaps(stream, self.last[cache_index], self.uses[cache_index], self.histogram[cache_index])


@compiled
def _count_gaps(stream, last, uses, histogram):
    for request in range(len(stream.starts) - 1):
        step = stream.step + request
        for access in range(stream.starts[request], stream.starts[request + 1]):
            expert = stream.ids[access]
            gap = step - last[expert] if last[expert] >= 0 else 0
            histogram[min(gap, len(histogram) - 1)] += 1
            uses[expert] += 1
            last[expert] = step


def describe_reuse(trace: RoutingTrace, phase: str = "decode", progress: Progress | None = None) -> dict:
    """Reuse distance and the two methods of a cache: a fixed hot set against the experts of the last tokens.

    `reuse_distance`: uses by token steps since the last one, in powers of two. `hot_set`: share of uses that
    the most used x % of each layer's experts cover (chosen afterwards, so an upper bound). `recency`: share
    of uses that the experts of the last w tokens cover, their mean number as a percentage of E, and what a
    hot set of that size covers. `method` is the one of both that covers more at the smallest window that
    covers half of all uses (else the largest).
    """
    inputs = replay_inputs(trace, CacheSetup(phase=phase))
    gaps = Gaps(trace.layers, trace.num_experts)
    sweep(inputs, [gaps], progress)
    recency = [_window(gaps, window, len(inputs.passes)) for window in WINDOWS]
    deciding = next((row for row in recency if row["covered"] >= 0.5), recency[-1])
    return {
        "reuse_distance": _by_powers_of_two(gaps.histogram.sum(axis=0)),
        "hot_set": [{"percent": percent, "covered": _hot(gaps.uses, percent)} for percent in HOT_PERCENT],
        "recency": recency,
        "method": "recency" if deciding["covered"] > deciding["hot_set_of_that_size"] else "frequency",
    }


def _window(gaps: Gaps, window: int, passes: int) -> dict:
    covered = gaps.histogram[:, 1 : window + 1].sum() / gaps.histogram.sum()
    percent = 100 * _resident_steps(gaps, window, passes) / (passes * gaps.uses.size)
    return {
        "tokens": window,
        "covered": float(covered),
        "percent": float(percent),
        "hot_set_of_that_size": _hot(gaps.uses, percent),
    }


def _resident_steps(gaps: Gaps, window: int, passes: int) -> int:
    """Sum over token steps of the experts used in the last `window`: each use keeps its expert until used
    again.
    """
    kept = np.minimum(np.arange(LONGEST_GAP + 1), window)
    final = np.minimum(passes - gaps.last[gaps.last >= 0], window).sum()
    return int((gaps.histogram.sum(axis=0) * kept).sum() + final)


def _hot(uses: np.ndarray, percent: float) -> float:
    """Share of all uses that fall on the most used `percent` of each layer's experts; linear between whole
    experts.
    """
    covered = np.cumsum(-np.sort(-uses, axis=1), axis=1).sum(axis=0) / uses.sum()
    return float(
        np.interp(percent / 100 * uses.shape[1], np.arange(uses.shape[1] + 1), np.append(0.0, covered))
    )


def _by_powers_of_two(histogram: np.ndarray) -> list[dict]:
    edges = [1 << power for power in range(LONGEST_GAP.bit_length())]
    rows: list[dict] = [
        {"from": low, "below": high, "uses": int(histogram[low:high].sum())} for low, high in pairwise(edges)
    ]
    rows.append({"from": LONGEST_GAP, "below": None, "uses": int(histogram[LONGEST_GAP])})
    return [{"from": 0, "below": 1, "uses": int(histogram[0])}, *rows]


@dataclass(frozen=True)
class SegmentCoverage:
    """Share of uses that the best rho * K experts of each layer and segment of tokens cover."""

    segment_tokens: int
    phase: str
    rho: float
    value: float
    value_ci95: list[float] | None
    layer_value: list[float]
    layer_value_ci95: list[list[float] | None] | None

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def segment_coverage(
    trace: RoutingTrace, tokens: int, ratios: Sequence[float], phase: str = "decode"
) -> list[SegmentCoverage]:
    """A row for each ratio rho, of the best round(rho * K) experts; none where no segment is whole.

    Segments are cut within a request and a phase; a shorter rest is left out. After arXiv 2505.16056: with
    ratio 1 this is SRP(tokens), a fixed group of K experts; otherwise SCH(tokens, ratio), the best that a
    segment's cache could hit.
    """
    rows = _segments(trace, tokens, phase)
    if len(rows) == 0:
        return []
    uses_bytes = np.dtype(np.int64).itemsize * len(rows) * trace.num_experts
    check_memory(3 * uses_bytes, f"{len(rows)} segments of {trace.num_experts} experts")
    best = [min(trace.num_experts, max(1, round(ratio * trace.top_k))) - 1 for ratio in ratios]
    names, request = np.unique(trace.request[rows[:, 0]], return_inverse=True)
    covered_RCL = np.zeros((len(names), len(ratios), trace.layers), np.int64)
    uses_RL = np.zeros((len(names), trace.layers), np.int64)
    for layer in range(trace.layers):
        uses = _uses(trace.experts[:, layer][rows], trace.num_experts)
        np.add.at(covered_RCL[:, :, layer], request, np.cumsum(-np.sort(-uses, axis=1), axis=1)[:, best])
        np.add.at(uses_RL[:, layer], request, uses.sum(axis=1))
    shares = rates(covered_RCL, uses_RL, uses_RL.sum(axis=1))
    return [
        SegmentCoverage(tokens, phase, ratio, *share) for ratio, share in zip(ratios, shares, strict=True)
    ]


def _uses(chosen: np.ndarray, experts: int) -> np.ndarray:
    """int64 [segments, E]: how often the sets `chosen` [segments, tokens, K] of a layer hold each expert."""
    flat = chosen.reshape(len(chosen), -1).astype(np.int64)
    segment, slot = np.nonzero(flat != EMPTY)
    numbers = segment * experts + flat[segment, slot]
    return np.bincount(numbers, minlength=len(flat) * experts).reshape(len(flat), -1)


def _segments(trace: RoutingTrace, tokens: int, phase: str) -> np.ndarray:
    """int64 [segments, tokens]: rows."""
    order = np.argsort(trace.request, kind="stable")
    order = order[np.isin(trace.phase[order], PHASES[phase])]
    key = trace.request[order].astype(np.int64) * 2 + trace.phase[order]
    runs = np.split(order, np.flatnonzero(np.diff(key)) + 1)
    whole = [run[: len(run) // tokens * tokens].reshape(-1, tokens) for run in runs]
    return np.concatenate(whole) if whole else np.empty((0, tokens), np.int64)
