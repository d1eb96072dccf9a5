"""The verdict in words: what it calls better or worse, and the numbers that it quotes."""

import pytest

from dwellmoe.evaluation.report.summary import three_digits
from dwellmoe.evaluation.report.verdict import verdicts


def cache_row(variant, missed_bytes):
    return {
        "variant": variant,
        "text": "teacher_forced",
        "phase": "decode",
        "scope": "layer",
        "policy": "lru",
        "capacity": 8,
        "capacity_percent": 25.0,
        "hit_rate": 0.5,
        "hit_rate_ci95": None,
        "miss_bytes_per_token": missed_bytes,
    }


def report_of(misses, misses_ci95, perplexity, perplexity_ci95, variants=("control", "tuned")):
    ratios = {
        "lru_misses_25_ratio": misses,
        "lru_misses_25_ratio_ci95": misses_ci95,
        "perplexity_ratio": perplexity,
        "perplexity_ratio_ci95": perplexity_ci95,
    }
    return {
        "variants": list(variants),
        "comparison": {f"{variants[1]}_vs_{variants[0]}": ratios},
        "cache": [cache_row(variants[0], 3e6), cache_row(variants[1], 2e6)],
        "locality": [],
        "quality": [],
    }


@pytest.mark.parametrize(
    "misses, misses_ci95, perplexity, perplexity_ci95, traffic, quality",
    [
        (0.66, [0.65, 0.67], 1.006, [1.002, 1.01], "better memory", "worse text"),
        (0.66, [0.65, 0.67], 1.006, [0.998, 1.01], "better memory", "no clear difference in text"),
        (1.2, [1.1, 1.3], 0.9, [0.8, 0.95], "worse memory", "better text"),
        (0.9, [0.8, 1.1], 1.1, None, "no clear difference in memory", "not judged"),
        (None, None, 1.1, [1.05, 1.2], None, "worse text"),
        (0.8, [0.7, 0.9], None, None, "better memory", None),
        (1.0, [1.0, 1.0], 0.99998, [0.99996, 0.99999], "difference in memory", "no clear difference in text"),
        (0.97, [0.94, 0.9998], 1.0, [1.0, 1.0], "no clear difference in memory", "difference in text"),
    ],
)
def test_better_and_worse_are_said_only_beyond_the_interval(
    misses, misses_ci95, perplexity, perplexity_ci95, traffic, quality
):
    (verdict,) = verdicts(report_of(misses, misses_ci95, perplexity, perplexity_ci95))
    for wanted, subject in ((traffic, "memory traffic"), (quality, "text quality")):
        said = f"{wanted} {subject.split()[1]}" if wanted else f"{subject} not compared"
        said = f"{subject} not judged" if wanted == "not judged" else said
        assert said in verdict.headline


def test_it_quotes_misses_bytes_and_perplexity():
    (verdict,) = verdicts(report_of(0.662, [0.65, 0.67], 1.006, [1.002, 1.01]))
    for number in ("33.8 %", "0.662x", "2.00 MB", "3.00 MB", "0.6 % higher", "25 %"):
        assert number in verdict.numbers


def test_equal_is_called_the_same_and_what_is_unknown_is_named():
    (verdict,) = verdicts(report_of(1.0, [1.0, 1.0], None, None))
    assert "misses are the same (1.000x" in verdict.numbers and "not a finite number" in verdict.numbers
    (verdict,) = verdicts(report_of(None, None, 1.0, None))
    assert "control has none" in verdict.numbers and "no interval" in verdict.numbers
    (verdict,) = verdicts(report_of(None, None, 1.0, None) | {"cache": []})
    assert "misses are not measured" in verdict.numbers


def test_the_base_is_left_out_where_there_is_a_control():
    report = report_of(0.6, [0.5, 0.7], 1.0, [0.9, 1.1])
    report["comparison"]["tuned_vs_base"] = report["comparison"]["tuned_vs_control"]
    assert [verdict.headline.split(":")[0] for verdict in verdicts(report)] == ["tuned against control"]
    report["variants"] = ["base", "tuned"]
    assert len(verdicts(report)) == 2


def test_one_variant_alone_is_told_what_it_needs():
    report = report_of(1.0, None, 1.0, None) | {"comparison": {}, "variants": ["control"]}
    (verdict,) = verdicts(report)
    assert "alone" in verdict.headline and "50.0 %" in verdict.numbers and "3.00 MB" in verdict.numbers
    (verdict,) = verdicts(report | {"cache": []})
    assert "no cache" in verdict.numbers


@pytest.mark.parametrize(
    "value, text",
    [
        (0.66151, "0.662"),
        (58.212, "58.2"),
        (1023.6, "1024"),
        (1.00601, "1.006"),
        (None, "–"),
        (0.0, "0.000"),
        (1.05e43, "1.05e+43"),
        (3.2e-5, "3.20e-05"),
    ],
)
def test_three_digits(value, text):
    assert three_digits(value) == text


@pytest.mark.parametrize(
    "ratio, interval, bound, said",
    [
        (1.9, [1.8, 2.05], None, "control needs 1.900x the cache (95 % interval 1.800 to 2.050)"),
        (4.0, [4.0, 4.0], "at least", "control needs at least 4.000x the cache"),
    ],
)
def test_what_a_variant_is_worth_in_cache(ratio, interval, bound, said):
    report = report_of(0.66, [0.65, 0.67], 1.0, [0.99, 1.01])
    report["comparison"]["tuned_vs_control"] |= {
        "memory_equivalent_25": ratio,
        "memory_equivalent_25_ci95": interval,
        "memory_equivalent_25_bound": bound,
    }
    (verdict,) = verdicts(report)
    assert said in verdict.numbers
