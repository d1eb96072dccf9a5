"""Locality and cache hits of the tokens that a task ran, as rows of a report."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES
from dwellmoe.cache.metrics import locality_row
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.trace import RoutingTrace, as_decode
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.report.cache_rows import ACCESS
from dwellmoe.routing.simulated_cache import AGREED, HITS, KEPT, MISSES, TOKENS

AS_RUN, AS_DECODED = "as_run", "as_decoded"
"""Which tokens are decode: those of continuations and answers, or all, a prompt's one by one."""


def routing_rows(
    trace: RoutingTrace, policies: Sequence[str], capacity: int, resamples: int
) -> dict[str, list[dict[str, Any]]]:
    """`locality` and `cache`: a row a phase, and policy, of tokens as they ran and as if all were decoded."""
    views = [(AS_RUN, trace, phase) for phase in ACCESS] + [(AS_DECODED, as_decode(trace), "decode")]
    rows: dict[str, list[dict[str, Any]]] = {"locality": [], "cache": []}
    for tokens, view, phase in views:
        if has_pairs(view, phase):
            found = locality_row(view, phase, resamples=resamples).as_dict()
            rows["locality"].append({"tokens": tokens} | found)
        if np.isin(view.phase, PHASES[phase]).any():
            found = curve(view, policies, [capacity], resamples=resamples, access=ACCESS[phase], phase=phase)
            rows["cache"] += [{"tokens": tokens} | row.as_dict() for row in found]
    return rows


def token_counts(trace: RoutingTrace) -> dict[str, int]:
    """Tokens of each phase, and rows that the harness ran."""
    counts = {phase: int(np.isin(trace.phase, PHASES[phase]).sum()) for phase in ACCESS}
    return {f"{phase}_tokens": count for phase, count in counts.items()} | {
        "rows": len(np.unique(trace.request))
    }


def rerouting_counts(tally_LC: np.ndarray, expert_bytes: Sequence[int]) -> dict[str, float]:
    """What a simulated cache counted in decode while it re-routed; `tally_LC` has the columns of a tally."""
    hits, misses, kept, agreed, tokens = tally_LC.sum(axis=0)[[HITS, MISSES, KEPT, AGREED, TOKENS]].tolist()
    missed_bytes = float(tally_LC[:, MISSES] @ np.asarray(expert_bytes))
    return {
        "hits": hits,
        "misses": misses,
        "hit_rate": hits / max(1, kept),
        "miss_bytes_per_token": missed_bytes / max(1, tokens / len(tally_LC)),
        "agreement": agreed / max(1, kept),
    }
