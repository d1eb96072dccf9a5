"""Rows of a report that count cache hits: of simulated caches, of re-routing, and of the offloading engine.

Letters: L MoE layers, E routed experts a layer, R requests, C counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.comparison import Ratio
from dwellmoe.offload import engine_of
from dwellmoe.routing.simulated_cache import AGREED, HITS, KEPT, MISSES, PREFILL_LOADS, TOKENS

ACCESS = {"prefill": "sequential", "decode": "atomic"}
"""A prompt's experts never fit at once, so prefill loads them one after the other, each once a chunk."""
SCOPES = ("layer", "global")


def hit_rate_rows(trace: RoutingTrace, policies: Sequence[str], resamples: int) -> list[HitRateRow]:
    """Rows of every policy, capacity and scope, prefill and decode apart, each from a cold cache.

    Scope `layer` has every capacity; scope `global` the same budgets, in steps of L slots.
    """
    return [
        row
        for phase in ACCESS
        if np.isin(trace.phase, PHASES[phase]).any()
        for scope in SCOPES
        for row in _curve(trace, policies, scope, phase, resamples)
    ]


def _curve(
    trace: RoutingTrace, policies: Sequence[str], scope: str, phase: str, resamples: int
) -> list[HitRateRow]:
    access = ACCESS[phase]
    step = trace.layers if scope == "global" else 1
    smallest = trace.top_k if access == "atomic" else 1
    capacities = [slots * step for slots in range(1, trace.num_experts + 1) if slots * step >= smallest]
    return curve(trace, policies, capacities, resamples=resamples, scope=scope, access=access, phase=phase)


@dataclass(frozen=True)
class ReroutingRow:
    """What re-routing gained and cost on one kind of text, in decode."""

    hits: int
    misses: int
    prefill_loads: int
    hit_rate: Ratio
    miss_bytes_per_token: Ratio
    misses_ratio: Ratio
    """Against the base on the same requests."""
    experts_per_token: Ratio
    agreement: Ratio
    """Share of the router's own choice that ran."""
    perplexity: float | None = None
    """With `kl_next_token` for reference text only."""
    kl_next_token: Ratio | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object, without what there is for reference text only where it is None."""
        row: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Ratio):
                row |= value.as_dict(name)
            elif value is not None:
                row[name] = value
        return row


def rerouting_row(
    measured: Measured, base: Measured, text: str, expert_bytes: Sequence[int], resamples: int
) -> ReroutingRow:
    """The row of one variant and text, from what its cache counted."""
    counts_RLC = np.stack(list(measured.tallies[text].values()))
    kinds = (HITS, MISSES, KEPT, AGREED, TOKENS, PREFILL_LOADS)
    hits, misses, kept, agreed, tokens, loads = (counts_RLC.sum(axis=1)[:, kind] for kind in kinds)
    missed_bytes = counts_RLC[:, :, MISSES] @ np.asarray(expert_bytes)
    base_misses = np.array([tally[:, MISSES].sum() for tally in base.tallies[text].values()])
    top_k = measured.recordings[text].trace.top_k
    layers = counts_RLC.shape[1]
    reference = text == "teacher_forced"
    return ReroutingRow(
        hits=int(hits.sum()),
        misses=int(misses.sum()),
        prefill_loads=int(loads.sum()),
        hit_rate=Ratio.of(hits, kept, resamples),
        miss_bytes_per_token=Ratio.of(missed_bytes, tokens / layers, resamples),
        misses_ratio=Ratio.of(misses, base_misses, resamples),
        experts_per_token=Ratio.of(kept, tokens, resamples),
        agreement=Ratio.of(agreed, tokens * top_k, resamples),
        perplexity=_perplexity(measured) if reference else None,
        kl_next_token=_divergence(measured, resamples) if reference else None,
    )


def _perplexity(measured: Measured) -> float:
    tokens = np.array([score.tokens for score in measured.scores.values()])
    with np.errstate(over="ignore"):
        return float(np.exp(sum(score.nll for score in measured.scores.values()) / tokens.sum()))


def _divergence(measured: Measured, resamples: int) -> Ratio:
    divergences = np.array([score.divergence or 0.0 for score in measured.scores.values()])
    tokens = np.array([score.tokens for score in measured.scores.values()])
    return Ratio.of(divergences, tokens, resamples)


def rerouting_rows(
    measured: Mapping[str, Measured],
    strategies: Mapping[str, str],
    expert_bytes: Sequence[int],
    resamples: int,
) -> list[dict]:
    """A row a variant and text, each against `base` without re-routing; `strategies`: of each variant."""
    return [
        {"variant": name, "text": text, "strategy": strategies[name]}
        | rerouting_row(
            found, measured["base"], text, expert_bytes=expert_bytes, resamples=resamples
        ).as_dict()
        for name, found in measured.items()
        for text in found.tallies
    ]


@contextmanager
def counted(evaluated: EvaluatedModel) -> Iterator[dict[str, Any]]:
    """A row that, when the block ends, holds what the offloading engine did in it, from cold caches on.

    It stays empty where all experts are in memory.
    """
    row: dict[str, Any] = {}
    engine = engine_of(evaluated.model)
    if engine is None:
        yield row
        return
    engine.reset()
    yield row
    row |= engine.fields()
