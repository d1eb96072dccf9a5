"""Figure: perplexity against bytes missed a token for every method, a panel a budget."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from dwellmoe.plots.style import SPARE_COLOURS, label, new_figure, note

METHODS = ("eviction policy", "re-routing", "training", "training and re-routing")
_LOOKS = dict(zip(METHODS, zip(SPARE_COLOURS, "osD^", strict=False), strict=True))


def draw(points: Sequence[dict], about: str) -> Figure:
    """`points`: rows with `method` (one of METHODS), `name`, `budget_percent`, `perplexity` and
    `miss_bytes_per_token`, and `memory_equivalent` where it stands beside the name. A grey line marks the
    perplexity of the first point of each budget.
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
    right = max(_megabytes(point) for point in points) * 1.3  # room for the rightmost names
    for method in dict.fromkeys(point["method"] for point in points):
        line = sorted((p for p in points if p["method"] == method), key=_megabytes)
        colour, marker = _LOOKS[method]
        x, y = [_megabytes(point) for point in line], [point["perplexity"] for point in line]
        axes.plot(x, y, marker, color=colour, linestyle=":", label=method, alpha=0.85)
        for here in _neighbours(line, within=0.15 * right):
            _name(axes, here, colour, below=method == METHODS[-1])
    axes.axhline(points[0]["perplexity"], color="#b4bac2", linewidth=1)
    axes.set_xlim(0, right)


def _megabytes(point: dict) -> float:
    return point["miss_bytes_per_token"] / 1e6


def _neighbours(line: Sequence[dict], within: float) -> list[list[dict]]:
    """Points of equal perplexity so close that one name must do for them, in order of their misses."""
    groups: list[list[dict]] = []
    for point in line:
        last = groups[-1][-1] if groups else None
        near = last is not None and _megabytes(point) - _megabytes(last) < within
        if last is not None and near and point["perplexity"] == last["perplexity"]:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _title(point: dict) -> str:
    worth = point.get("memory_equivalent")
    return f"{point['name']}, worth {worth['ratio']:.2f}x" if worth else point["name"]


def _name(axes, points: Sequence[dict], colour: str, below: bool) -> None:
    axes.annotate(
        ", ".join(map(_title, points)),
        (_megabytes(points[0]), points[0]["perplexity"]),
        fontsize=6.5,
        xytext=(-4, -10) if below else (4, 4),
        textcoords="offset points",
        color=colour,
        horizontalalignment="right" if below else "left",
    )
