"""Figure: perplexity against bytes missed a token for every method, a panel a budget."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from dwellmoe.plots.style import SPARE_COLOURS, label, new_figure, note

METHODS = ("eviction policy", "re-routing", "training", "training and re-routing")
_LOOKS = dict(zip(METHODS, zip(SPARE_COLOURS, "osD^", strict=False), strict=True))


def draw(points: Sequence[dict], about: str) -> Figure:
    """`points`: rows with `method` (one of METHODS), `name`, `budget_percent`, `perplexity` and
    `miss_bytes_per_token`. A grey line marks the perplexity of the first point of each budget.
    """
    budgets = sorted({point["budget_percent"] for point in points})
    figure, axes = new_figure(1, len(budgets), width=4.2 * len(budgets), height=4.4)
    for panel, budget in zip(axes, budgets, strict=True):
        of_budget = [point for point in points if point["budget_percent"] == budget]
        _panel(panel, of_budget)
        label(panel, f"{budget:g} % of the experts", "missed a token, MB", "perplexity")
    axes[0].legend(fontsize=8, frameon=False)
    note(figure, about)
    return figure


def _panel(axes, points: Sequence[dict]) -> None:
    for method in dict.fromkeys(point["method"] for point in points):
        line = sorted((p for p in points if p["method"] == method), key=lambda p: p["miss_bytes_per_token"])
        colour, marker = _LOOKS[method]
        missed = [point["miss_bytes_per_token"] / 1e6 for point in line]
        axes.plot(
            missed,
            [p["perplexity"] for p in line],
            marker,
            color=colour,
            linestyle=":",
            label=method,
            alpha=0.85,
        )
        for x, point in zip(missed, line, strict=True):
            axes.annotate(
                point["name"],
                (x, point["perplexity"]),
                fontsize=6.5,
                xytext=(3, 3),
                textcoords="offset points",
                color=colour,
            )
    axes.axhline(points[0]["perplexity"], color="#b4bac2", linewidth=1)
    axes.set_xlim(left=0)
