"""Knows the locality rows of a report: ECR, GDS and LAL with intervals; does not know how they are recorded.

Letters: L MoE layers, R requests.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import ratio_interval, ratio_intervals
from dwellmoe.evaluation.recording import PHASES, GateSums, Recording, has_pairs


def locality_rows(variant: str, text: str, recording: Recording, resamples: int) -> list[dict]:
    """A row for each phase in which any request has two tokens."""
    return [
        {"variant": variant, "text": text} | _row(recording, phase, resamples)
        for phase in PHASES
        if has_pairs(recording.trace, phase)
    ]


def _row(recording: Recording, phase: str, resamples: int) -> dict:
    trace = recording.trace
    ecr = metrics.ecr(trace, phase)
    pairs = GateSums(ecr.by_request, ecr.pairs_by_request)
    summary = {"phase": phase, "pairs": ecr.pairs, "chance_ecr": trace.top_k / trace.num_experts}
    columns = _summary("ecr", pairs, resamples) | _summary("gds", recording.gates[phase], resamples)
    lal = metrics.layer_weighted(ecr.per_layer)
    weights = np.arange(1, trace.layers + 1)
    lal_sums = ecr.by_request @ weights / weights.sum()
    summary |= {name: columns[name] for name in ("ecr", "ecr_ci95", "gds", "gds_ci95")}
    summary |= {
        "lal": lal,
        "lal_ci95": ratio_interval(lal_sums, ecr.pairs_by_request, resamples),
        "lal_unnormalised": lal * (trace.layers + 1) / 2,
    }
    return summary | {"per_layer": _per_layer(trace.layer_ids or (), columns)}


def _summary(name: str, found: GateSums, resamples: int) -> dict:
    """Mean over pairs of all layers together and of each layer, with their intervals."""
    every = np.column_stack([found.sums.mean(axis=1), found.sums])
    means = (every.sum(axis=0) / found.pairs.sum()).tolist()
    intervals = ratio_intervals(every, found.pairs, resamples)
    return {
        name: means[0],
        f"{name}_ci95": intervals[0],
        f"{name}_per_layer": means[1:],
        f"{name}_ci95_per_layer": intervals[1:],
    }


def _per_layer(layer_ids: Sequence[int], columns: dict) -> list[dict]:
    names = ("ecr", "ecr_ci95", "gds", "gds_ci95")
    parts = [columns[f"{name}_per_layer"] for name in names]
    return [
        {"layer_id": layer_id} | dict(zip(names, values, strict=True))
        for layer_id, *values in zip(layer_ids, *parts, strict=True)
    ]
