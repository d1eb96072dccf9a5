"""Knows which figures a report has and picks their numbers out of it; does not draw."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dwellmoe.cache.trace import PREFILL, RoutingTrace
from dwellmoe.evaluation.measure import Measured
from dwellmoe.plots import ecr_per_layer, hit_rate_curve, memory_throughput, routing_over_time
from dwellmoe.plots.style import save

TEXT = "teacher_forced"
SHOWN_TOKENS = 120
SPEED_POLICIES = ("lru", "opt")


def write_figures(folder: Path, report: Mapping, measured: Mapping[str, Measured]) -> dict[str, str]:
    """Writes a PNG a figure; gives file name -> caption, in the order of the report."""
    drawn: dict[str, tuple[str, Callable[[], Figure | None]]] = {
        "hit_rate.png": ("Hit rate against capacity", lambda: _hit_rate(report)),
        "memory_throughput.png": ("Decoding speed against memory", lambda: _memory(report)),
        "ecr_per_layer.png": ("Expert consistency rate of each layer", lambda: _ecr(report)),
        "routing_over_time.png": ("Routing over time", lambda: _routing(report, measured)),
    }
    captions = {}
    for name, (caption, draw) in drawn.items():
        if (figure := draw()) is not None:
            save(figure, folder / name)
            captions[name] = caption
    return captions


def _rows(report: Mapping, **wanted: str) -> list[dict]:
    wanted = {"scope": "layer", "phase": "decode", "text": TEXT} | wanted
    return [row for row in report["cache"] if all(row[name] == value for name, value in wanted.items())]


def _hit_rate(report: Mapping) -> Figure | None:
    rows = _rows(report)
    return hit_rate_curve.draw(rows) if rows else None


def _ecr(report: Mapping) -> Figure | None:
    rows = [row for row in report["locality"] if row["text"] == TEXT]
    return ecr_per_layer.draw(rows) if rows else None


def _memory(report: Mapping) -> Figure | None:
    points = {
        (variant, policy): [(row["memory_bytes"], row["tokens_per_second"]) for row in rows]
        for variant in report["variants"]
        for policy in SPEED_POLICIES
        if (rows := [r for r in report["speed"] if (r["variant"], r["policy"]) == (variant, policy)])
    }
    device = report["device"]
    return memory_throughput.draw(points, device["name"], device["about"]) if points else None


def _routing(report: Mapping, measured: Mapping[str, Measured]) -> Figure:
    traces = {name: found.recordings[TEXT].trace for name, found in measured.items()}
    first = next(iter(traces.values()))
    request, layer = _longest_request(first), first.layers // 2
    rows = np.flatnonzero(first.request == request)[-SHOWN_TOKENS:]
    routing = {name: trace.experts[rows, layer] for name, trace in traces.items()}
    prompt_tokens = int((first.phase[rows] == PREFILL).sum())
    about = f"text {TEXT}, request {request}, its last {len(rows)} tokens"
    layer_id = (first.layer_ids or ())[layer]
    return routing_over_time.draw(routing, first.num_experts, layer_id, prompt_tokens, about)


def _longest_request(trace: RoutingTrace) -> int:
    """The request with the most decoded tokens; the first of several."""
    decoded = trace.request[trace.phase != PREFILL]
    numbers, counts = np.unique(decoded if len(decoded) else trace.request, return_counts=True)
    return int(numbers[counts.argmax()])
