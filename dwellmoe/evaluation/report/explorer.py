"""The numbers behind the charts of the report's page, as its script reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 6
"""Of each number: more than a chart or its table shows."""
SETUP = ("text", "phase", "scope")
CACHE = (
    "capacity",
    "capacity_percent",
    "capacity_bytes",
    "hit_rate",
    "hit_rate_ci95",
    "miss_bytes_per_token",
)


def chart_data(report: Mapping) -> dict[str, Any]:
    """Hit rates, locality and speed, a series a line of a chart: each of its numbers in order of capacity or
    layer.
    """
    return {
        "variants": list(report["variants"]),
        "cache": _series(report["cache"], ("variant", "policy", *SETUP), CACHE),
        "speed": _series(report["speed"], ("variant", "policy"), ("memory_bytes", "tokens_per_second")),
        "locality": [_by_layer(row) for row in report["locality"]],
        "device": report["device"]["about"],
    }


def _series(rows: Sequence[Mapping], keys: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows that agree in `keys` are one series, with a list for each of `columns`."""
    groups: dict[tuple, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [
        dict(zip(keys, group, strict=True)) | {name: [_short(row[name]) for row in found] for name in columns}
        for group, found in groups.items()
    ]


def _by_layer(row: Mapping) -> dict[str, Any]:
    layers = row["per_layer"]
    return {
        **{name: row[name] for name in ("variant", "text", "phase")},
        "chance": _short(row["chance_ecr"]),
        **{name: [_short(layer[name]) for layer in layers] for name in ("layer_id", "ecr", "ecr_ci95")},
    }


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
