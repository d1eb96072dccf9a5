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
        (0.9, [0.8, 1.1], 1.1, None, "no clear difference in memory", "no clear difference in text"),
        (None, None, 1.1, [1.05, 1.2], "no clear difference in memory", "worse text"),
    ],
)
def test_better_and_worse_are_said_only_beyond_the_interval(
    misses, misses_ci95, perplexity, perplexity_ci95, traffic, quality
):
    (sentence,) = verdicts(report_of(misses, misses_ci95, perplexity, perplexity_ci95))
    assert f"{traffic} traffic" in sentence and f"{quality} quality" in sentence


def test_it_quotes_misses_bytes_and_perplexity():
    (sentence,) = verdicts(report_of(0.662, [0.65, 0.67], 1.006, [1.002, 1.01]))
    for number in ("33.8%", "0.662x", "2.00 MB", "3.00 MB", "0.6% higher", "25 %"):
        assert number in sentence


def test_the_base_is_left_out_where_there_is_a_control():
    report = report_of(0.6, [0.5, 0.7], 1.0, [0.9, 1.1])
    report["comparison"]["tuned_vs_base"] = report["comparison"]["tuned_vs_control"]
    assert [sentence.split(":")[0] for sentence in verdicts(report)] == ["tuned against control"]
    report["variants"] = ["base", "tuned"]
    assert len(verdicts(report)) == 2


def test_one_variant_alone_is_told_what_it_needs():
    report = report_of(1.0, None, 1.0, None) | {"comparison": {}, "variants": ["control"]}
    (sentence,) = verdicts(report)
    assert "50.0%" in sentence and "3.00 MB" in sentence
    (sentence,) = verdicts(report | {"cache": []})
    assert "no cache" in sentence


@pytest.mark.parametrize(
    "value, text", [(0.66151, "0.662"), (58.212, "58.2"), (1023.6, "1024"), (1.00601, "1.006"), (None, "–")]
)
def test_three_digits(value, text):
    assert three_digits(value) == text
