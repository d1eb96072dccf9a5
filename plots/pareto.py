"""Draws perplexity against bytes fetched a token, a panel a budget, a line an objective; trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.style import colour_of, label, new_figure, note

MB = 1e6


@dataclass(frozen=True)
class Spread:
    """The mean over seeds, and the span of the 95 % intervals of all seeds."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], intervals: Sequence[Sequence[float]]) -> "Spread":
        return cls(mean(values), min(low for low, _ in intervals), max(high for _, high in intervals))


@dataclass(frozen=True)
class FrontPoint:
    """One objective at one weight, over its seeds."""

    label: str
    weight: float
    seeds: int
    perplexity: Spread
    fetched: dict[float, Spread]
    """Budget in percent -> bytes an LRU cache of that size fetches a token."""


def fronts(records: Sequence[dict]) -> list[FrontPoint]:
    """The records of a sweep, joined over seeds, and the untouched model from any of them."""
    groups: dict[tuple[str, float], list[dict]] = {("base", 0.0): [records[0]["variants"]["base"]]}
    several_scopes = len({record["scope"] for record in records}) > 1
    for record in records:
        name = f"{record['objective']}, {record['scope']}" if several_scopes else record["objective"]
        groups.setdefault((name, record["weight"]), []).append(record["variants"]["tuned"])
    return [_joined(name, weight, measured) for (name, weight), measured in sorted(groups.items())]


def _joined(name: str, weight: float, measured: Sequence[dict]) -> FrontPoint:
    perplexity = Spread.of(
        [found["perplexity"] for found in measured], [found["perplexity_ci95"] for found in measured]
    )
    rows = [row for found in measured for row in found["budgets"]]
    fetched = {}
    for percent in dict.fromkeys(row["budget_percent"] for row in rows):
        some = [row for row in rows if row["budget_percent"] == percent]
        fetched[percent] = Spread.of(
            [row["miss_bytes_per_token"] for row in some], [row["miss_bytes_per_token_ci95"] for row in some]
        )
    return FrontPoint(name, weight, len(measured), perplexity, fetched)


def draw(points: Sequence[FrontPoint]) -> Figure:
    """A panel a budget: lower left is better."""
    budgets = list(points[0].fetched)
    figure, axes = new_figure(1, len(budgets), width=4.2 * len(budgets), height=4.2)
    for panel, percent in zip(axes, budgets, strict=True):
        _panel(panel, points, percent)
        label(panel, f"{percent:g} % of the experts resident", "MB fetched a token (LRU)", "perplexity")
    axes[0].legend(fontsize=8, frameon=False)
    seeds = max(point.seeds for point in points)
    note(figure, f"bars: span of the 95 % intervals (bootstrap over requests) of {seeds} seeds; decode, cold")
    return figure


def _panel(axes: Axes, points: Sequence[FrontPoint], percent: float) -> None:
    for place, name in enumerate(dict.fromkeys(point.label for point in points)):
        line = [point for point in points if point.label == name]
        x, y = [point.fetched[percent] for point in line], [point.perplexity for point in line]
        axes.errorbar(
            [each.value / MB for each in x],
            [each.value for each in y],
            xerr=_arms(x, MB),
            yerr=_arms(y, 1.0),
            color=colour_of(name, place),
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.7,
            label=name,
        )


def _arms(spreads: Sequence[Spread], unit: float) -> list[list[float]]:
    low = [max(each.value - each.low, 0) / unit for each in spreads]
    return [low, [max(each.high - each.value, 0) / unit for each in spreads]]
