"""Every figure of a report draws from plain numbers and reaches its file; none needs torch."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from dwellmoe.plots import (
    ecr_per_layer,
    hit_rate_curve,
    memory_equivalent,
    memory_throughput,
    methods,
    routing_over_time,
)
from dwellmoe.plots.style import save

CONVENTION = {"scope": "layer", "access": "atomic", "phase": "decode", "start": "cold", "reset": "never"}


def hit_rates(policies):
    return [
        CONVENTION
        | {"policy": policy, "variant": variant, "capacity_percent": 25 * slots, "hit_rate": slots / 4}
        for policy in policies
        for variant in ("base", "tuned")
        for slots in range(1, 5)
    ]


def localities():
    layers = [
        {"layer_id": layer, "ecr": 0.3, "ecr_ci95": interval}
        for layer, interval in ((1, [0.2, 0.4]), (2, None))
    ]
    row = {"variant": "base", "text": "teacher_forced", "chance_ecr": 0.1, "per_layer": layers}
    return [row | {"phase": "prefill"}, row | {"phase": "decode"}]


def worth(ratio, interval=None):
    names = ("", "_ci95", "_bound")
    values = (ratio, interval, None if interval else "at least")
    return {f"{memory_equivalent.NAME}{name}": value for name, value in zip(names, values, strict=True)}


FIGURES = {
    "hit_rate": lambda: hit_rate_curve.draw(hit_rates(["lru", "lfu", "opt"])),
    "one_policy": lambda: hit_rate_curve.draw(
        [row for row in hit_rates(["lru"]) if row["variant"] == "base"]
    ),
    "ecr": lambda: ecr_per_layer.draw(localities()),
    "routing": lambda: routing_over_time.draw({"base": np.arange(6).reshape(3, 2)}, 6, 0, 1, "request 0"),
    "methods": lambda: methods.draw(
        [
            {
                "method": method,
                "name": method[:4],
                "budget_percent": budget,
                "miss_bytes_per_token": 1e6,
                "perplexity": 9.0,
            }
            for method in methods.METHODS
            for budget in (12.5, 25)
        ],
        "a model",
    ),
    "worth": lambda: memory_equivalent.draw({"tuned_vs_base": worth(1.9, [1.7, 2.1]), "a_vs_b": worth(4.0)}),
    "memory": lambda: memory_throughput.draw(
        {("base", "lru"): [(2e6, 5.0), (1e6, 3.0)]}, r"8 GB for $\frac$", r"a floor, $\x$"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_it_is_drawn_and_saved(name, tmp_path):
    save(FIGURES[name](), tmp_path / "figure.png")
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_memory_equivalent_stands_beside_its_interval():
    (axes,) = FIGURES["worth"]().axes
    assert [text.get_text() for text in axes.texts] == ["1.90x", "at least 4.00x"]
    lines: list[Any] = list(axes.lines)
    spans = [
        line.get_xdata() for line in lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] in (0, 1)
    ]
    assert [list(span) for span in spans[:2]] == [[1.7, 2.1], [4.0, 4.0]]


def test_only_what_the_token_before_chose_counts_as_stayed():
    stayed = routing_over_time._stayed(np.array([[0, 1], [1, 2], [1, 2]], np.uint16))
    assert stayed.tolist() == [[False, False], [True, False], [True, True]]


def test_figures_need_no_torch():
    names = (
        "hit_rate_curve",
        "ecr_per_layer",
        "memory_equivalent",
        "routing_over_time",
        "memory_throughput",
        "methods",
    )
    modules = ", ".join(f"dwellmoe.plots.{name}" for name in names)
    check = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0
