"""Draws perplexity against bytes fetched a token, a panel a budget, a line an objective; trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwellmoe.errors import UserError
from dwellmoe.plots.style import colour_of, label, new_figure, note

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
    """One objective at one weight (or one method at one setting), over its seeds."""

    objective: str
    scope: str
    """What was trained; empty where all points share one, and for the base and methods."""
    weight: float
    seeds: int
    perplexity: Spread
    """Ratio to the control of the same seed, on the same requests."""
    fetched: dict[float, Spread]
    """Budget in percent -> bytes an LRU cache of that size fetches a token."""

    @property
    def label(self) -> str:
        return f"{self.objective}, {self.scope}" if self.scope else self.objective


def fronts(records: Sequence[dict], methods: Sequence[dict] = ()) -> list[FrontPoint]:
    """The records of a sweep, joined over seeds, and the reference model beside them.

    `methods`: points of benchmarks/methods.py, of which those under re-routing are taken, joined by setting.
    """
    groups: dict[tuple[str, str, float], list[_Measured]] = {}
    several_scopes = len({record["scope"] for record in records}) > 1
    for record in records:
        scope = record["scope"] if several_scopes else ""
        tuned, base = (_fetched(record["variants"][each]) for each in ("tuned", "base"))
        ratio = record["comparison"]["perplexity_ratio"]
        interval = record["comparison"]["perplexity_ratio_ci95"]
        if record["compared_with"] == "base":
            inverse = (1 / ratio, [1 / interval[1], 1 / interval[0]])
            groups.setdefault(("base", "", 0.0), []).append((*inverse, base))
            ratio, interval = 1.0, [1.0, 1.0]
        point = record["objective"], scope, record["weight"]
        groups.setdefault(point, []).append((ratio, interval, tuned))
    found = [_joined(*point, measured) for point, measured in sorted(groups.items())]
    return found + _rerouted(methods)


_Measured = tuple[float, Sequence[float], dict[float, tuple[float, Sequence[float]]]]
"""Perplexity ratio, its interval, and bytes fetched with theirs by budget."""


def _fetched(variant: dict) -> dict[float, tuple[float, Sequence[float]]]:
    return {
        row["budget_percent"]: (row["miss_bytes_per_token"], row["miss_bytes_per_token_ci95"])
        for row in variant["budgets"]
    }


def _rerouted(methods: Sequence[dict]) -> list[FrontPoint]:
    """A point a method, strategy and budget: here quality depends on the budget as well."""
    groups: dict[tuple[str, str, float], list[_Measured]] = {}
    for point in methods:
        if "re-routing" in point["method"]:
            budget, missed = point["budget_percent"], point["miss_bytes_per_token"]
            ends = [missed * end / point["misses_ratio"] for end in point["misses_ratio_ci95"]]
            fetched: dict[float, tuple[float, Sequence[float]]] = {budget: (missed, ends)}
            measured = point["perplexity_ratio"], point["perplexity_ratio_ci95"], fetched
            groups.setdefault((point["method"], point["strategy"], budget), []).append(measured)
    return [
        _joined(method, "", float(place), groups[method, strategy, budget])
        for place, (method, strategy, budget) in enumerate(sorted(groups))
    ]


def _joined(objective: str, scope: str, weight: float, measured: Sequence[_Measured]) -> FrontPoint:
    ratios, intervals, fetched = zip(*measured, strict=True)
    by_budget = {
        budget: Spread.of(*zip(*(each[budget] for each in fetched), strict=True)) for budget in fetched[0]
    }
    return FrontPoint(objective, scope, weight, len(measured), Spread.of(ratios, intervals), by_budget)


def worse_than(points: Sequence[FrontPoint], chosen: str) -> list[str]:
    """Where another objective of the same scope beats the front of `chosen` beyond the intervals: a line
    each. Raises UserError where `chosen` has no point.

    A point beats the front, drawn straight from the control over the weights of `chosen`, where the lower
    end of the front's perplexity is above the upper end of the point's, at the most the point may fetch.
    """
    scopes = dict.fromkeys(point.scope for point in points if point.objective == chosen)
    if not scopes:
        raise UserError(f"--judge {chosen}: no point of it was measured")
    return [line for scope in scopes for line in _worse_in_scope(points, chosen, scope)]


def _worse_in_scope(points: Sequence[FrontPoint], chosen: str, scope: str) -> list[str]:
    points = [point for point in points if point.scope == scope]
    front = [point for point in points if point.objective in ("control", chosen)]
    beaten = []
    for point in points:
        if point.objective in ("base", "control", chosen) or point.objective.endswith("re-routing"):
            continue
        for budget, fetched in point.fetched.items():
            reached = sorted((each.fetched[budget].value, each.perplexity.low) for each in front)
            costs = np.interp(fetched.high, [x for x, _ in reached], [y for _, y in reached])
            if costs > point.perplexity.high:
                beaten.append(f"{budget:g} %: {point.label} at {point.weight:g} beats {chosen}")
    return beaten


def line(point: FrontPoint) -> str:
    """One point in words."""
    fetched = ", ".join(f"{each.value / MB:.3f} MB at {budget:g} %" for budget, each in point.fetched.items())
    quality = point.perplexity
    return (
        f"{point.label:<24} {point.weight:<6g} {point.seeds} seeds, perplexity {quality.value:.4f}x "
        f"({quality.low:.4f}-{quality.high:.4f}), fetched a token: {fetched}"
    )


def draw(points: Sequence[FrontPoint]) -> Figure:
    """A panel a budget: lower left is better."""
    budgets = list(points[0].fetched)
    figure, axes = new_figure(1, len(budgets), width=4.2 * len(budgets), height=4.2)
    for panel, percent in zip(axes, budgets, strict=True):
        _panel(panel, [point for point in points if percent in point.fetched], percent)
        label(
            panel,
            f"{percent:g} % of the experts resident",
            "MB fetched a token (LRU)",
            "perplexity, x control",
        )
    axes[0].legend(fontsize=8, frameon=False)
    seeds = max(point.seeds for point in points)
    note(
        figure,
        f"bars: span of the 95 % intervals (bootstrap over requests) of up to {seeds} seeds; decode, cold",
    )
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
