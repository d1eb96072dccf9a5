"""The fronts of a sweep: seeds joined, intervals spanned, base from any record."""

import pytest

from plots.pareto import Spread, draw, fronts
from plots.style import save


def variant(perplexity, fetched):
    rows = [
        {
            "budget_percent": percent,
            "miss_bytes_per_token": value,
            "miss_bytes_per_token_ci95": [value - 1, value + 1],
        }
        for percent, value in ((12.5, fetched), (25.0, fetched / 2))
    ]
    return {"perplexity": perplexity, "perplexity_ci95": [perplexity - 2, perplexity + 2], "budgets": rows}


def record(objective, weight, seed, perplexity, fetched):
    tuned, base = variant(perplexity, fetched), variant(60.0, 400.0)
    key = {"objective": objective, "weight": weight, "scope": "router", "seed": seed}
    return key | {"variants": {"base": base, "tuned": tuned}}


RECORDS = [
    record("control", 0.0, 1, 50.0, 390.0),
    record("js", 0.1, 1, 51.0, 300.0),
    record("js", 0.1, 2, 53.0, 310.0),
    record("js", 1.0, 1, 55.0, 200.0),
]


def test_seeds_are_joined_and_their_intervals_spanned():
    found = {(point.label, point.weight): point for point in fronts(RECORDS)}
    assert set(found) == {("base", 0.0), ("control", 0.0), ("js", 0.1), ("js", 1.0)}
    assert found["js", 0.1].seeds == 2
    assert found["js", 0.1].perplexity == Spread(52.0, 49.0, 55.0)
    assert found["js", 0.1].fetched[25.0] == Spread(152.5, 149.0, 156.0)
    assert found["base", 0.0].fetched[12.5].value == pytest.approx(400.0)


def test_the_figure_reaches_its_file(tmp_path):
    save(draw(fronts(RECORDS)), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000
