"""The fronts of a sweep: seeds joined, intervals spanned, and which objective beats which."""

from typing import Any

import pytest

from dwellmoe.errors import UserError
from dwellmoe.plots.pareto import Spread, draw, fronts, line, worse_than
from dwellmoe.plots.style import save


def variant(fetched):
    rows = [
        {
            "budget_percent": percent,
            "miss_bytes_per_token": value,
            "miss_bytes_per_token_ci95": [value - 1, value + 1],
        }
        for percent, value in ((12.5, fetched), (25.0, fetched / 2))
    ]
    return {"budgets": rows}


def record(objective, weight, seed, ratio, fetched, compared_with="control", scope="router"):
    key = {"objective": objective, "weight": weight, "scope": scope, "seed": seed}
    comparison = {"perplexity_ratio": ratio, "perplexity_ratio_ci95": [ratio - 0.01, ratio + 0.01]}
    variants = {"base": variant(400.0), "tuned": variant(fetched)}
    return key | {"compared_with": compared_with, "comparison": comparison, "variants": variants}


def method(name, ratio, missed, budget=25.0):
    return {
        "method": name,
        "strategy": "margin:loss=0.2",
        "budget_percent": budget,
        "miss_bytes_per_token": missed,
        "misses_ratio": 0.5,
        "misses_ratio_ci95": [0.4, 0.6],
        "perplexity_ratio": ratio,
        "perplexity_ratio_ci95": [ratio, ratio],
    }


RECORDS = [
    record("control", 0.0, 1, 0.8, 390.0, "base"),
    record("js", 0.1, 1, 1.01, 300.0),
    record("js", 0.1, 2, 1.03, 310.0),
    record("js", 1.0, 1, 1.10, 200.0),
]


def near(value: float) -> Any:
    return pytest.approx(value)


def test_seeds_are_joined_and_their_intervals_spanned():
    found = {(point.label, point.weight): point for point in fronts(RECORDS)}
    assert set(found) == {("base", 0.0), ("control", 0.0), ("js", 0.1), ("js", 1.0)}
    assert found["js", 0.1].seeds == 2
    assert found["js", 0.1].perplexity == Spread(near(1.02), 1.0, 1.04)
    assert found["js", 0.1].fetched[25.0] == Spread(152.5, 149.0, 156.0)
    assert found["control", 0.0].perplexity == Spread(1.0, 1.0, 1.0)
    assert found["base", 0.0].perplexity == Spread(near(1.25), 1 / 0.81, 1 / 0.79)
    assert found["base", 0.0].fetched[12.5].value == pytest.approx(400.0)
    assert "2 seeds, perplexity 1.0200x (1.0000-1.0400)" in line(found["js", 0.1])


def test_re_routing_stands_beside_the_fronts():
    methods = [
        method("re-routing", 1.02, 100.0),
        method("re-routing", 1.04, 110.0),
        method("training", 1.0, 90.0),
    ]
    (found,) = [point for point in fronts(RECORDS, methods) if point.label == "re-routing"]
    assert found.seeds == 2 and found.perplexity.value == pytest.approx(1.03)
    assert found.fetched == {25.0: Spread(105.0, near(80.0), near(132.0))}


def test_what_a_point_is_worth_in_cache_stands_beside_it():
    """Of several seeds the mean; of the control, which it is worth itself, nothing."""
    worth = {"memory_equivalent_25": 1.5, "memory_equivalent_25_ci95": [1.4, 1.7]}
    records = [
        each | {"comparison": each["comparison"] | worth} if each["seed"] == 1 else each for each in RECORDS
    ]
    rerouted = method("re-routing", 1.02, 100.0) | {
        "memory_equivalent": {"ratio": 2.0, "ratio_ci95": [1.8, 2.5]}
    }
    found = {(point.label, point.weight): point.worth for point in fronts(records, [rerouted])}
    assert found["control", 0.0] is None and found["base", 0.0] is None
    assert found["js", 0.1] is None, "one seed was not measured"
    assert found["js", 1.0] == Spread(1.5, 1.4, 1.7) and found["re-routing", 0.0] == Spread(2.0, 1.8, 2.5)
    points = fronts(records, [rerouted])
    assert line(points[-1]).endswith("worth 2.00x (1.80-2.50) the cache")
    panels = [[text.get_text() for text in axes.texts] for axes in draw(points).axes]
    assert panels == [[], ["1.50x", "2.00x"]]


def test_an_objective_is_beaten_only_beyond_the_intervals():
    # At 255 of 400 bytes the front of js costs 1.06 by a straight line, 1.05 at the lower end.
    def beaten(ratio, fetched):
        return worse_than(fronts([*RECORDS, record("overlap", 0.1, 1, ratio, fetched)]), "js")

    assert beaten(1.02, 255.0) == [f"{budget} %: overlap at 0.1 beats js" for budget in ("12.5", "25")]
    assert beaten(1.04, 255.0) == []
    assert beaten(1.05, 150.0) == ["12.5 %: overlap at 0.1 beats js", "25 %: overlap at 0.1 beats js"]
    assert beaten(1.30, 150.0) == []


def test_each_scope_is_judged_against_its_own_control():
    other = [
        record("control", 0.0, 1, 0.8, 390.0, "base", scope="all"),
        record("js", 0.1, 1, 1.03, 300.0, scope="all"),
        record("overlap", 0.1, 1, 1.00, 290.0, scope="all"),
        record("overlap", 0.1, 1, 1.06, 290.0),
    ]
    points = fronts([*RECORDS, *other])
    assert {point.label for point in points} >= {"base", "js, router", "js, all", "overlap, all"}
    assert worse_than(points, "js") == [f"{each} %: overlap, all at 0.1 beats js" for each in ("12.5", "25")]
    with pytest.raises(UserError, match="--judge l2: no point of it was measured"):
        worse_than(points, "l2")


def test_the_figure_reaches_its_file(tmp_path):
    save(draw(fronts(RECORDS, [method("re-routing", 1.02, 100.0)])), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
