"""Splits a trace by request: what is learned from, and what decides when to stop."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.cache.access import PHASES, check_phase
from dwellmoe.cache.trace import RoutingTrace, as_decode
from dwellmoe.errors import UserError

LEAST_REQUESTS = 4


@dataclass(frozen=True)
class Split:
    """Whole requests: those to learn from, and those that decide when to stop and which weights to keep."""

    train: RoutingTrace
    validation: RoutingTrace


def split_by_request(trace: RoutingTrace, phase: str, share: float, seed: int) -> Split:
    """Every request of `phase` is on one side; `share` of them, drawn by seed, is for validation.

    UserError where there are too few requests: rows of one request are too alike to judge by.
    """
    check_phase(phase)
    names = np.unique(trace.request[np.isin(trace.phase, PHASES[phase])])
    if len(names) < LEAST_REQUESTS:
        raise UserError(
            f"the trace has {len(names)} requests with {phase} steps: fitting splits by request and needs "
            f"at least {LEAST_REQUESTS}"
        )
    drawn = np.random.default_rng(seed).permutation(names)
    held_out = drawn[: max(1, round(len(names) * share))]
    rows = np.isin(trace.phase, PHASES[phase])
    inside = np.isin(trace.request, held_out)
    return Split(as_decode(trace, rows & ~inside), as_decode(trace, rows & inside))
