"""Draws the experts that one layer chose token by token, before and after fine-tuning, on the same text.

    D=results/demo
    python docs/figures/routing_before_after.py --before $D/trace-control-teacher_forced.safetensors
        --after $D/trace-tuned-teacher_forced.safetensors --out docs/routing_before_after.png

Both traces must hold the same requests. Letters: T tokens, K chosen experts, E routed experts.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import dwellmoe as dm
from dwellmoe.cache.metrics import ecr
from dwellmoe.cache.trace import DECODE

KEPT, SWITCHED = (
    "#0072B2",
    "#E69F00",
)  # blue and orange of Okabe and Ito: apart for every kind of colour vision
BACKGROUND = "#f3f4f6"
EMPTY = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="trace of the model without locality training")
    parser.add_argument("--after", required=True, help="trace of the trained model, on the same text")
    parser.add_argument("--layer", type=int, help="MoE layer, from 0 [the one that changed most]")
    parser.add_argument("--request", type=int, help="request to draw [a typical one]")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    options = parser.parse_args()
    before, after = dm.RoutingTrace.load(options.before), dm.RoutingTrace.load(options.after)
    rates_before, rates_after = switch_rates(before), switch_rates(after)
    layer = int((rates_before - rates_after).argmax()) if options.layer is None else options.layer
    request = typical_request(before, after, layer) if options.request is None else options.request
    figure = draw(
        Panel("Before", chosen(before, request, layer), rates_before.mean()),
        Panel("After", chosen(after, request, layer), rates_after.mean()),
        experts=before.num_experts,
        layer_id=before.layer_ids[layer],
    )
    figure.savefig(options.out, dpi=150)
    print(f"{options.out}: request {request}, layer {before.layer_ids[layer]}")


def switch_rates(trace: dm.RoutingTrace) -> np.ndarray:
    """1 - ECR of each layer, over all requests."""
    return 1 - np.array(ecr(trace).per_layer)


def chosen(trace: dm.RoutingTrace, request: int, layer: int) -> np.ndarray:
    """The experts [T, K] of one request's answer in one layer."""
    rows = (trace.request == request) & (trace.phase == DECODE)
    return trace.experts[rows, layer].astype(np.int64)


def typical_request(before: dm.RoutingTrace, after: dm.RoutingTrace, layer: int) -> int:
    """Of the requests with the longest answers, the one whose switch shares are nearest to the means."""
    ids, tokens = np.unique(before.request[before.phase == DECODE], return_counts=True)
    shares = np.array(
        [[switched(chosen(trace, i, layer))[1:].mean() for trace in (before, after)] for i in ids]
    )
    distance = np.abs(shares - np.average(shares, axis=0, weights=tokens)).sum(axis=1)
    long_enough = tokens >= np.quantile(tokens, 0.9)
    return int(ids[long_enough][distance[long_enough].argmin()])


def switched(experts_TK: np.ndarray) -> np.ndarray:
    """bool [T, K]: whether the token before did without this expert; True throughout for the first token."""
    earlier = np.roll(experts_TK, 1, axis=0)
    earlier[:1] = -1
    return ~(experts_TK[:, :, None] == earlier[:, None, :]).any(axis=2)


class Panel(NamedTuple):
    name: str
    experts_TK: np.ndarray
    switch_rate: float  # of all layers and requests


def draw(before: Panel, after: Panel, *, experts: int, layer_id: int) -> Figure:
    """Two panels, tokens from left to right and experts from bottom to top."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    fill(left, before, experts)
    fill(right, after, experts)
    left.set_ylabel(f"expert of layer {layer_id}", fontsize=12)
    keys = [
        Patch(color=KEPT, label="used by the token before, too"),
        Patch(color=SWITCHED, label="switched in"),
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    return figure


def fill(axes: Axes, panel: Panel, experts: int) -> None:
    experts_TK = panel.experts_TK
    new_TK = switched(experts_TK)
    cells_ET = np.full((experts, len(experts_TK)), EMPTY)
    for token, (chosen_K, new_K) in enumerate(zip(experts_TK, new_TK, strict=True)):
        cells_ET[chosen_K, token] = np.where(new_K, 2, 1)
    axes.imshow(cells_ET, cmap=ListedColormap([BACKGROUND, KEPT, SWITCHED]), aspect="auto", origin="lower")
    axes.set_yticks(np.arange(experts + 1) - 0.5, minor=True)  # a white line between experts
    axes.grid(which="minor", axis="y", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=11)
    axes.spines[:].set_visible(False)
    axes.set_title(
        f"{panel.name}: {new_TK[1:].mean():.0%} switches", loc="left", fontsize=14, fontweight="bold"
    )
    axes.set_title(f"all layers: {panel.switch_rate:.0%}", loc="right", fontsize=12)
    axes.set_xlabel("token", fontsize=12)


if __name__ == "__main__":
    main()
