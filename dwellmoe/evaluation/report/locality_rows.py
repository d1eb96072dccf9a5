"""Locality rows of a report: ECR, GDS and LAL of each phase, with intervals."""

from collections.abc import Sequence
from typing import Any

from dwellmoe.cache.metrics import Locality, LocalityRow, locality_row
from dwellmoe.evaluation.recording import MEASURED_PHASES, Recording, has_pairs

LAYER_FIELDS = {
    "ecr": "per_layer",
    "ecr_ci95": "per_layer_ci95",
    "gds": "gds_per_layer",
    "gds_ci95": "gds_per_layer_ci95",
}
"""Field of a layer in a report -> the field of `LocalityRow` with its values."""


def locality_rows(recording: Recording, resamples: int) -> list[dict[str, Any]]:
    """A row, as one JSON object, for each phase in which any request has two tokens."""
    trace = recording.trace
    phases = [phase for phase in MEASURED_PHASES if has_pairs(trace, phase)]
    similarity = {phase: Locality.of(gates.sums, gates.pairs) for phase, gates in recording.gates.items()}
    rows = [locality_row(trace, phase, similarity[phase], resamples) for phase in phases]
    return [_with_layers(row, trace.layer_ids) for row in rows]


def _with_layers(row: LocalityRow, layer_ids: Sequence[int]) -> dict[str, Any]:
    """The row with an object for each layer."""
    values = (getattr(row, field) for field in LAYER_FIELDS.values())
    layers = [
        dict(zip(("layer_id", *LAYER_FIELDS), layer, strict=True))
        for layer in zip(layer_ids, *values, strict=True)
    ]
    whole = {name: value for name, value in row.as_dict().items() if name not in LAYER_FIELDS.values()}
    return whole | {"per_layer": layers}
