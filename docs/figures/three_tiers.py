"""Draws the three tiers that hold experts and the way of one token through two layers: a schematic.

python docs/figures/three_tiers.py docs/three_tiers.png
"""

import sys
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COMPUTE, COPY, READ, WAIT = "#0072B2", "#009E73", "#D55E00", "#d9dce1"  # of Okabe and Ito, and a grey
ROWS = {"device": 2.0, "RAM": 1.0, "disk": 0.0}
DOES = {"device": "computes", "RAM": "copies to the device", "disk": "is read into RAM"}
HEIGHT = 0.5


class Bar(NamedTuple):
    """What one tier does for a while; no unit of time."""

    row: str
    start: float
    end: float
    colour: str
    text: str = ""


ASK_1, ASK_2 = 2.4, 11.5  # the moments at which the routers have chosen
BARS = (
    Bar("device", 0.0, 2.4, COMPUTE, "attention,\nrouter"),
    Bar("device", 2.4, 3.6, COMPUTE, "A"),
    Bar("RAM", 2.4, 4.0, COPY, "B"),
    Bar("device", 4.0, 5.2, COMPUTE, "B"),
    Bar("disk", 2.4, 6.3, READ, "C"),
    Bar("RAM", 6.3, 7.9, COPY, "C"),
    Bar("device", 7.9, 9.1, COMPUTE, "C"),
    Bar("disk", 6.3, 10.2, READ, "E, predicted"),
    Bar("device", 9.1, 11.5, COMPUTE, "attention,\nrouter"),
    Bar("device", 11.5, 12.7, COMPUTE, "D"),
    Bar("RAM", 10.2, 11.8, COPY, "E"),
    Bar("device", 12.7, 13.9, COMPUTE, "E"),
)
WAITS = ((3.6, 4.0), (5.2, 7.9))


def main() -> None:
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    tiers, timeline = figure.subplots(1, 2, width_ratios=(1, 2.9))
    draw_tiers(tiers)
    draw_timeline(timeline)
    figure.savefig(sys.argv[1], dpi=150)


def draw_tiers(axes: Axes) -> None:
    """A row of expert squares a tier, the wider the larger the tier."""
    contents = {"device": "AD", "RAM": "BFGH", "disk": "ABCDEFGH"}
    for tier, row in ROWS.items():
        for i, expert in enumerate(contents[tier]):
            axes.add_patch(Rectangle((i, row), 0.9, HEIGHT, color=WAIT))
            axes.text(i + 0.45, row + HEIGHT / 2, expert, ha="center", va="center", fontsize=10)
        axes.text(0, row + HEIGHT + 0.08, f"{tier}: {DOES[tier]}", fontsize=11)
    axes.set_xlim(-0.1, 8)
    finish(axes, "Where experts are")


def draw_timeline(axes: Axes) -> None:
    for start, end in WAITS:
        axes.add_patch(Rectangle((start, ROWS["device"]), end - start, HEIGHT, color=WAIT))
    axes.text(6.55, ROWS["device"] + HEIGHT / 2, "stall", ha="center", va="center", fontsize=11)
    for bar in BARS:
        rectangle = Rectangle((bar.start, ROWS[bar.row]), bar.end - bar.start, HEIGHT, facecolor=bar.colour)
        rectangle.set(edgecolor="white", linewidth=1.5)
        axes.add_patch(rectangle)
        middle = (bar.start + bar.end) / 2, ROWS[bar.row] + HEIGHT / 2
        axes.text(*middle, bar.text, ha="center", va="center", color="white", fontsize=10)
    for start, text in ((ASK_1, "layer 1 requests A, B, C"), (ASK_2, "layer 2 requests D, E")):
        axes.plot([start, start], [-0.1, 2.62], color="#30343b", linewidth=1, linestyle=":")
        axes.text(start, 2.68, text, fontsize=10.5, ha="center")
    axes.annotate("", (14.1, -0.22), (0, -0.22), arrowprops={"arrowstyle": "->", "color": "#30343b"})
    axes.text(14.1, -0.3, "time", ha="right", va="top", fontsize=10)
    axes.set_xlim(-0.1, 14.2)
    finish(axes, "One token, two layers (schematic)")


def finish(axes: Axes, title: str) -> None:
    axes.set_ylim(-0.55, 3.0)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold")


if __name__ == "__main__":
    main()
