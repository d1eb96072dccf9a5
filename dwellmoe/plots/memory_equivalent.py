"""Figure: what the routing of each variant is worth in cache, with 95 % intervals."""

from collections.abc import Mapping

from matplotlib.figure import Figure

from dwellmoe.plots.style import colour_of, label, new_figure, note

NAME = "memory_equivalent_25"


def draw(comparisons: Mapping[str, Mapping]) -> Figure:
    """`comparisons`: name -> ratios of a report that have a memory equivalent; the first is on top."""
    figure, (axes,) = new_figure(width=9, height=1.4 + 0.42 * len(comparisons))
    for at, (name, row) in enumerate(comparisons.items()):
        value, colour = row[NAME], colour_of(name.partition("_vs_")[0], at)
        low, high = row[f"{NAME}_ci95"] or [value, value]
        axes.plot([low, high], [at, at], color=colour, linewidth=2)
        axes.plot(value, at, "o", color=colour)
        axes.annotate(
            _words(row), (max(value, high), at), xytext=(8, -3), textcoords="offset points", fontsize=9
        )
    axes.axvline(1, color="#b4bac2", linestyle=":", linewidth=1.2)
    axes.set_yticks(range(len(comparisons)), [name.replace("_vs_", " vs ") for name in comparisons])
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.margins(x=0.12)
    label(
        axes, "Worth in cache", "times the cache that the second one needs to miss as seldom as the first", ""
    )
    note(
        figure, "LRU, 25 % of the experts, a cache a layer; reference text, decode; 95 % bootstrap intervals"
    )
    return figure


def _words(row: Mapping) -> str:
    bound = row[f"{NAME}_bound"]
    return f"{bound + ' ' if bound else ''}{row[NAME]:.2f}x"
