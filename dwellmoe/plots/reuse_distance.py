"""Figure: how soon experts are used again, and what recently used experts cover against a fixed hot set."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from dwellmoe.plots.style import SPARE_COLOURS, label, new_figure, note


def draw(reuse: Mapping, phase: str) -> Figure:
    """`reuse`: as `dwellmoe.cache.replay.reuse.describe_reuse` returns it."""
    figure, (distance, coverage) = new_figure(1, 2, width=10, height=4)
    rows = [row for row in reuse["reuse_distance"] if row["uses"]]
    names = ["first" if row["from"] == 0 else str(row["from"]) for row in rows]
    total = sum(row["uses"] for row in rows)
    distance.bar(names, [row["uses"] / total for row in rows], color=SPARE_COLOURS[0])
    distance.tick_params(axis="x", labelsize=8, rotation=40)
    label(distance, "reuse distance", "token steps since the last use, from", "share of uses")
    percent = [row["percent"] for row in reuse["recency"]]
    lines = {"experts of the last tokens": "covered", "fixed hot set of that size": "hot_set_of_that_size"}
    for colour, (name, field) in zip(SPARE_COLOURS, lines.items(), strict=False):
        coverage.plot(percent, [row[field] for row in reuse["recency"]], color=colour, marker="o", label=name)
    coverage.set_ylim(0, 1)
    coverage.legend(fontsize=9, frameon=False, loc="lower right")
    label(coverage, f"method: {reuse['method']}", "size, % of a layer's experts", "share of uses covered")
    note(figure, f"phase {phase}; the hot set is chosen with the whole trace known, an upper bound")
    return figure
