"""Figure: perplexity against bytes fetched a token, a panel a budget and a line an objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dwellmoe.errors import UserError
from dwellmoe.plots.style import colour_of, label, new_figure, note

MB = 1e6
WORTH_AT = 25.0  # percent of the experts for which memory equivalents are known


@dataclass(frozen=True)
class Spread:
    """The mean over seeds, and the span of the 95 % intervals of all seeds."""

    value: float
    low: float
    high: float


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
    worth: Spread | None = None
    """The LRU cache that the control needs to miss as seldom as this at 25 %, over that size."""

    @property
    def label(self) -> str:
        return f"{self.objective}, {self.scope}" if self.scope else self.objective


def fronts(records: Sequence[dict], methods: Sequence[dict] = ()) -> list[FrontPoint]:
    """The records of a sweep, joined over seeds, and the base model.

    `methods`: points of `benchmarks/methods.py`; those with re-routing are added, joined by setting.
    """
    groups: dict[_Key, list[_Measured]] = {}
    several_scopes = len({record["scope"] for record in records}) > 1
    for record in records:
        scope = record["scope"] if several_scopes else ""
        tuned, base = (_fetched(record["variants"][each]) for each in ("tuned", "base"))
        comparison = record["comparison"]
        perplexity = _Value(comparison["perplexity_ratio"], comparison["perplexity_ratio_ci95"])
        worth = _known(*(comparison.get(f"memory_equivalent_25{part}") for part in ("", "_ci95")))
        if record["compared_with"] == "base":
            groups.setdefault(_Key("base", "", 0.0), []).append(_Measured(perplexity.inverse, base))
            perplexity, worth = _Value(1.0, [1.0, 1.0]), None
        key = _Key(record["objective"], scope, record["weight"])
        groups.setdefault(key, []).append(_Measured(perplexity, tuned, worth))
    found = [_joined(key, measured) for key, measured in sorted(groups.items())]
    return found + _rerouted(methods)


class _Key(NamedTuple):
    objective: str
    scope: str
    weight: float


class _Value(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    ci95: Sequence[float]

    @property
    def inverse(self) -> "_Value":
        return _Value(1 / self.value, [1 / self.ci95[1], 1 / self.ci95[0]])


class _Measured(NamedTuple):
    """One seed: the perplexity ratio, and the bytes fetched by budget in percent."""

    perplexity: _Value
    fetched: dict[float, _Value]
    worth: _Value | None = None


def _known(ratio: float | None, interval: Sequence[float] | None) -> _Value | None:
    """None for a ratio that was not measured, or has no interval."""
    return _Value(ratio, interval) if ratio is not None and interval else None


def _fetched(variant: dict) -> dict[float, _Value]:
    return {
        row["budget_percent"]: _Value(row["miss_bytes_per_token"], row["miss_bytes_per_token_ci95"])
        for row in variant["budgets"]
    }


def _rerouted(methods: Sequence[dict]) -> list[FrontPoint]:
    """A point a method, strategy and budget: with re-routing, quality depends on the budget as well."""
    groups: dict[tuple[str, str, float], list[_Measured]] = {}
    for point in methods:
        if "re-routing" in point["method"]:
            budget = point["budget_percent"]
            missed = point["miss_bytes_per_token"]
            ends = [missed * end / point["misses_ratio"] for end in point["misses_ratio_ci95"]]
            perplexity = _Value(point["perplexity_ratio"], point["perplexity_ratio_ci95"])
            worth = point.get("memory_equivalent") if budget == WORTH_AT else None
            measured = _Measured(
                perplexity,
                {budget: _Value(missed, ends)},
                worth=_known(worth["ratio"], worth["ratio_ci95"]) if worth else None,
            )
            groups.setdefault((point["method"], point["strategy"], budget), []).append(measured)
    return [
        _joined(_Key(key[0], "", weight=float(i)), measured)
        for i, (key, measured) in enumerate(sorted(groups.items(), key=lambda group: group[0]))
    ]


def _joined(key: _Key, measured: Sequence[_Measured]) -> FrontPoint:
    """The point of all seeds."""
    budgets = measured[0].fetched
    worth = [each.worth for each in measured if each.worth is not None]
    return FrontPoint(
        objective=key.objective,
        scope=key.scope,
        weight=key.weight,
        seeds=len(measured),
        perplexity=_spread([each.perplexity for each in measured]),
        fetched={budget: _spread([each.fetched[budget] for each in measured]) for budget in budgets},
        worth=_spread(worth) if len(worth) == len(measured) else None,
    )


def _spread(values: Sequence[_Value]) -> Spread:
    return Spread(
        value=mean(each.value for each in values),
        low=min(each.ci95[0] for each in values),
        high=max(each.ci95[1] for each in values),
    )


def worse_than(points: Sequence[FrontPoint], chosen: str) -> list[str]:
    """One line for each point of another objective that beats the front of `chosen` of the same scope.

    The front runs in straight lines from the control through the weights of `chosen`. A point beats it where,
    at the upper end of the bytes the point fetches, the lower end of the front's perplexity is above the
    upper end of the point's. Raises UserError where `chosen` has no point.
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
    """One point as a line of text."""
    fetched = ", ".join(f"{each.value / MB:.3f} MB at {budget:g} %" for budget, each in point.fetched.items())
    worth = f", worth {_span(point.worth, 2)} the cache" if point.worth else ""
    return (
        f"{point.label:<24} {point.weight:<6g} {point.seeds} seeds, perplexity {_span(point.perplexity, 4)}, "
        f"fetched a token: {fetched}{worth}"
    )


def _span(spread: Spread, digits: int) -> str:
    return f"{spread.value:.{digits}f}x ({spread.low:.{digits}f}-{spread.high:.{digits}f})"


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
        f"bars: span of the 95 % intervals (bootstrap over requests) of up to {seeds} seeds; decode, cold; "
        "1.90x: worth so many times the control's cache",
    )
    return figure


def _panel(axes: Axes, points: Sequence[FrontPoint], percent: float) -> None:
    for i, name in enumerate(dict.fromkeys(point.label for point in points)):
        line = [point for point in points if point.label == name]
        x = [point.fetched[percent] for point in line]
        y = [point.perplexity for point in line]
        axes.errorbar(
            [each.value / MB for each in x],
            [each.value for each in y],
            xerr=_arms(x, MB),
            yerr=_arms(y, 1.0),
            color=colour_of(name, i),
            marker="o",
            markersize=4,
            linewidth=1.4,
            elinewidth=0.7,
            label=name,
        )
        for point in line:
            if point.worth and percent == WORTH_AT:
                at = (point.fetched[percent].value / MB, point.perplexity.value)
                axes.annotate(
                    f"{point.worth.value:.2f}x", at, fontsize=7, xytext=(4, 4), textcoords="offset points"
                )


def _arms(spreads: Sequence[Spread], unit: float) -> list[list[float]]:
    low = [max(each.value - each.low, 0) / unit for each in spreads]
    return [low, [max(each.high - each.value, 0) / unit for each in spreads]]
