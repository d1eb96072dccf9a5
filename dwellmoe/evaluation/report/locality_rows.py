"""Locality rows of a report: ECR, GDS and LAL of each phase, with intervals.

Letters: L MoE layers, R requests.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import ratio_interval, ratio_intervals
from dwellmoe.evaluation.recording import MEASURED_PHASES, GateSums, Recording, has_pairs


@dataclass(frozen=True)
class LayerLocality:
    """ECR and GDS of one layer."""

    layer_id: int
    ecr: float
    ecr_ci95: list[float] | None
    gds: float
    gds_ci95: list[float] | None


@dataclass(frozen=True)
class LocalityRow:
    """ECR, GDS and LAL of one phase, with 95 % intervals over requests (None with fewer than two)."""

    phase: str
    pairs: int
    chance_ecr: float
    ecr: float
    ecr_ci95: list[float] | None
    gds: float
    gds_ci95: list[float] | None
    lal: float
    lal_ci95: list[float] | None
    lal_unnormalised: float
    per_layer: list[LayerLocality]

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return asdict(self)


def locality_rows(recording: Recording, resamples: int) -> list[LocalityRow]:
    """A row for each phase in which any request has two tokens."""
    return [
        _row(recording, phase, resamples) for phase in MEASURED_PHASES if has_pairs(recording.trace, phase)
    ]


def _row(recording: Recording, phase: str, resamples: int) -> LocalityRow:
    trace = recording.trace
    found = metrics.ecr(trace, phase)
    ecr = _means(GateSums(found.by_request, found.pairs_by_request), resamples)
    gds = _means(recording.gates[phase], resamples)
    lal = metrics.layer_weighted(found.per_layer)
    weights = np.arange(1, trace.layers + 1)
    lal_sums = found.by_request @ weights / weights.sum()
    layers = zip(
        trace.layer_ids or (),
        ecr.per_layer,
        ecr.per_layer_ci95,
        gds.per_layer,
        gds.per_layer_ci95,
        strict=True,
    )
    return LocalityRow(
        phase=phase,
        pairs=found.pairs,
        chance_ecr=trace.top_k / trace.num_experts,
        ecr=ecr.value,
        ecr_ci95=ecr.ci95,
        gds=gds.value,
        gds_ci95=gds.ci95,
        lal=lal,
        lal_ci95=ratio_interval(lal_sums, found.pairs_by_request, resamples),
        lal_unnormalised=lal * (trace.layers + 1) / 2,
        per_layer=[LayerLocality(*layer) for layer in layers],
    )


class _Means(NamedTuple):
    value: float
    ci95: list[float] | None
    per_layer: list[float]
    per_layer_ci95: list[list[float] | None]


def _means(found: GateSums, resamples: int) -> _Means:
    """Mean over pairs of all layers together and of each layer, with their intervals."""
    sums = np.column_stack([found.sums.mean(axis=1), found.sums])
    means = (sums.sum(axis=0) / found.pairs.sum()).tolist()
    intervals = ratio_intervals(sums, found.pairs, resamples)
    return _Means(means[0], intervals[0], means[1:], intervals[1:])
