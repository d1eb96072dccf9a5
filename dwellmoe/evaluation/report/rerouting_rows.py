"""Knows what re-routing bought and cost, a row a variant and text; does not re-route.

Letters: R requests, L MoE layers, C counts. Counts are those of a virtual cache (`routing/simulated_cache.py`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dwellmoe.cache.intervals import ratio_interval
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.rerouting_settings import NONE
from dwellmoe.routing.simulated_cache import AGREED, HITS, KEPT, MISSES, PREFILL_LOADS, TOKENS

REROUTED = "-rerouted"
"""Ends the name of a variant that was measured with re-routing."""


def rerouting_rows(
    measured: Mapping[str, Measured], strategy: str, expert_bytes: Sequence[int], resamples: int
) -> list[dict]:
    """A row a variant and text, each against `base` with its own choice."""
    return [
        {"variant": name, "text": text, "strategy": strategy if name.endswith(REROUTED) else NONE}
        | rerouting_row(found, measured["base"], text, expert_bytes, resamples)
        for name, found in measured.items()
        for text in found.tallies
    ]


def rerouting_row(
    found: Measured, base: Measured, text: str, expert_bytes: Sequence[int], resamples: int
) -> dict:
    """Numbers of one measurement. `agreement`: the share of the router's own choice that ran; `misses_ratio`:
    against `base` on the same requests.
    """
    counts_RLC = np.stack(list(found.tallies[text].values()))
    hits, misses, kept, agreed, tokens, loads = (counts_RLC.sum(axis=1)[:, kind] for kind in _COUNTS)
    missed_bytes = counts_RLC[:, :, MISSES] @ np.asarray(expert_bytes)
    base_misses = np.array([tally[:, MISSES].sum() for tally in base.tallies[text].values()])
    top_k, layers = found.recordings[text].trace.top_k, counts_RLC.shape[1]
    means = {
        "hit_rate": (hits, kept),
        "miss_bytes_per_token": (missed_bytes, tokens / layers),
        "misses_ratio": (misses, base_misses),
        "experts_per_token": (kept, tokens),
        "agreement": (agreed, tokens * top_k),
    }
    row = {"hits": int(hits.sum()), "misses": int(misses.sum()), "prefill_loads": int(loads.sum())}
    for name, (parts, of) in means.items():
        row |= _mean(name, parts, of, resamples)
    return row | (_scores(found, resamples) if text == "teacher_forced" else {})


_COUNTS = (HITS, MISSES, KEPT, AGREED, TOKENS, PREFILL_LOADS)


def _scores(measured: Measured, resamples: int) -> dict:
    scores = list(measured.scores.values())
    tokens = np.array([score.tokens for score in scores])
    lost = sum(score.nll for score in scores)
    divergences = np.array([score.divergence or 0.0 for score in scores])
    row = {"perplexity": float(np.exp(lost / tokens.sum()))}
    return row | _mean("kl_next_token", divergences, tokens, resamples)


def _mean(name: str, parts_R: np.ndarray, of_R: np.ndarray, resamples: int) -> dict:
    if not of_R.sum():
        return {name: None, f"{name}_ci95": None}
    interval = ratio_interval(parts_R, of_R, resamples)
    return {name: float(parts_R.sum() / of_R.sum()), f"{name}_ci95": interval}
