"""The figures of a report: which there are, and which of its numbers each shows."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dwellmoe.cache.trace import PREFILL, RoutingTrace
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.comparison import rows_where
from dwellmoe.plots import (
    ecr_per_layer,
    hit_rate_curve,
    memory_equivalent,
    memory_throughput,
    routing_over_time,
)
from dwellmoe.plots.style import save

TEXT = "teacher_forced"
SHOWN_TOKENS = 120
SPEED_POLICIES = ("lru", "opt")


def write_figures(folder: Path, report: Mapping, measured: Mapping[str, Measured]) -> dict[str, str]:
    """Writes a PNG for each figure; returns file name -> caption, in the order of the report."""
    figures: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "hit_rate.png": ("Hit rate against capacity", lambda: _hit_rate(report)),
        "memory_equivalent.png": ("Worth in cache", lambda: _worth(report)),
        "memory_throughput.png": ("Decoding speed against memory", lambda: _memory(report)),
        "ecr_per_layer.png": ("Expert consistency rate of each layer", lambda: _ecr(report)),
        "routing_over_time.png": ("Routing over time", lambda: _routing(report, measured)),
    }
    captions = {}
    for name, (caption, draw) in figures.items():
        if (figure := draw()) is not None:
            save(figure, folder / name)
            captions[name] = caption
    return captions


def _hit_rate(report: Mapping) -> Figure | None:
    rows = rows_where(report["cache"], scope="layer", phase="decode", text=TEXT)
    return hit_rate_curve.draw(rows) if rows else None


def _worth(report: Mapping) -> Figure | None:
    found = {
        name: row for name, row in report["comparison"].items() if row[memory_equivalent.NAME] is not None
    }
    return memory_equivalent.draw(found) if found else None


def _ecr(report: Mapping) -> Figure | None:
    rows = rows_where(report["locality"], text=TEXT)
    return ecr_per_layer.draw(rows) if rows else None


def _memory(report: Mapping) -> Figure | None:
    points = {
        (variant, policy): [(row["memory_bytes"], row["tokens_per_second"]) for row in rows]
        for variant in report["variants"]
        for policy in SPEED_POLICIES
        if (rows := rows_where(report["speed"], variant=variant, policy=policy))
    }
    device = report["device"]
    return memory_throughput.draw(points, device["name"], device["about"]) if points else None


def _routing(report: Mapping, measured: Mapping[str, Measured]) -> Figure:
    traces = {name: found.recordings[TEXT].trace for name, found in measured.items()}
    first = next(iter(traces.values()))
    request_id = _longest_request(first)
    layer = first.layers // 2
    rows = np.flatnonzero(first.request == request_id)[-SHOWN_TOKENS:]
    return routing_over_time.draw(
        {name: trace.experts[rows, layer] for name, trace in traces.items()},
        experts=first.num_experts,
        layer_id=(first.layer_ids or ())[layer],
        prompt_tokens=int((first.phase[rows] == PREFILL).sum()),
        about=f"text {TEXT}, request {request_id}, its last {len(rows)} tokens",
    )


def _longest_request(trace: RoutingTrace) -> int:
    """The request with the most decoded tokens; the first of several."""
    decoded = trace.request[trace.phase != PREFILL]
    request_ids, counts = np.unique(decoded if len(decoded) else trace.request, return_counts=True)
    return int(request_ids[counts.argmax()])
