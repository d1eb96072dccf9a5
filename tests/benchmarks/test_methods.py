"""Methods are compared where they cost the same perplexity."""

from methods import at_equal_quality


def point(method, misses, perplexity, budget=25.0):
    numbers = {"misses_ratio": misses, "perplexity_ratio": perplexity, "perplexity_ratio_ci95": [0.99, 1.01]}
    others = dict.fromkeys(
        ("hit_rate", "miss_bytes_per_token", "switch_rate_ratio", "perplexity", "kl_next_token", "agreement"),
        0.5,
    )
    worth = {"ratio": 1 / misses, "ratio_ci95": [1.1, 4.0], "bound": None}
    names = {"method": method, "variant": "x", "name": "y", "memory_equivalent": worth}
    return others | numbers | names | {"budget_percent": budget}


def test_the_fewest_misses_within_the_allowed_perplexity_of_each_method_and_budget():
    points = [
        point("re-routing", 0.5, 1.01),
        point("re-routing", 0.4, 1.02),
        point("re-routing", 0.3, 1.03),
        point("training", 0.7, 1.05),
        point("re-routing", 0.8, 1.00, budget=12.5),
    ]
    lines = at_equal_quality(points, 1.02)
    assert [line.split("misses ")[1].split("x")[0] for line in lines] == ["0.800", "0.400"]
    assert "worth 2.50x the cache (1.1000-4.0000)" in lines[1]
