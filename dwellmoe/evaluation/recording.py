"""Recorded routing without the gates' distributions: a trace, and the sums that gate similarity (GDS) needs.

Letters: L MoE layers, R requests.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.access import PHASES
from dwellmoe.cache.trace import LAYOUT, RoutingTrace

MEASURED_PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class GateSums:
    """Sums of (1 + cos) / 2 over a request's pairs [R, L], and its number of pairs [R]."""

    sums: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Recording:
    """Routing of some requests; of the gates' distributions only what GDS needs is kept."""

    trace: RoutingTrace
    gates: dict[str, GateSums]


def recording_of(trace: RoutingTrace) -> Recording:
    """The recording of a trace that has `gate_probs`, which take much memory and are dropped."""
    gates = {phase: _gate_sums(trace, phase) for phase in MEASURED_PHASES if has_pairs(trace, phase)}
    return Recording(dataclasses.replace(trace, gate_probs=None), gates)


def join(recordings: Sequence[Recording]) -> Recording:
    """One recording of all, in the order of the request ids."""
    traces = [recording.trace for recording in recordings]
    order = np.argsort(np.concatenate([trace.request for trace in traces]), kind="stable")
    present = [name for name in LAYOUT if getattr(traces[0], name) is not None]
    arrays = {name: np.concatenate([getattr(trace, name) for trace in traces])[order] for name in present}
    found = {
        phase: [part.gates[phase] for part in recordings if phase in part.gates] for phase in MEASURED_PHASES
    }
    gates = {phase: _stack(parts) for phase, parts in found.items() if parts}
    return Recording(dataclasses.replace(traces[0], **arrays), gates)


def has_pairs(trace: RoutingTrace, phase: str) -> bool:
    """Whether any request has two tokens or more in this phase."""
    requests = np.sort(trace.request[np.isin(trace.phase, PHASES[phase])])
    return bool((requests[1:] == requests[:-1]).any())


def _gate_sums(trace: RoutingTrace, phase: str) -> GateSums:
    found = metrics.gds(trace, phase)
    return GateSums(found.by_request, found.pairs_by_request)


def _stack(parts: Sequence[GateSums]) -> GateSums:
    sums, pairs = ([getattr(part, name) for part in parts] for name in ("sums", "pairs"))
    return GateSums(np.concatenate(sums), np.concatenate(pairs))
