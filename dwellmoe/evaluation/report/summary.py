"""Knows the few numbers a reader looks at first, one row a variant; reads a report, computes nothing."""

from collections.abc import Mapping, Sequence

from dwellmoe.evaluation.report.cache_rows import at_share

HEADINGS = ("variant", "perplexity", "ECR", "LRU hit rate at 25 %", "miss bytes a token")


def summary_rows(report: Mapping) -> list[dict]:
    """Variant -> its numbers on the reference text in decode; None where the report has none."""
    return [_row(variant, report) for variant in report["variants"]]


def _row(variant: str, report: Mapping) -> dict:
    wanted = {"variant": variant, "text": "teacher_forced", "phase": "decode"}
    cache = at_share(report["cache"], variant=variant, policy="lru") or {}
    locality, quality = _first(report["locality"], wanted), _first(report["quality"], {"variant": variant})
    return {
        "variant": variant,
        "perplexity": quality.get("perplexity"),
        "perplexity_ci95": quality.get("perplexity_ci95"),
        "ecr": locality.get("ecr"),
        "ecr_ci95": locality.get("ecr_ci95"),
        "hit_rate": cache.get("hit_rate"),
        "hit_rate_ci95": cache.get("hit_rate_ci95"),
        "capacity": cache.get("capacity"),
        "capacity_percent": cache.get("capacity_percent"),
        "miss_bytes_per_token": cache.get("miss_bytes_per_token"),
    }


def _first(rows: Sequence[dict], wanted: Mapping) -> dict:
    return next((row for row in rows if all(row.get(name) == value for name, value in wanted.items())), {})


def readable_bytes(size: float | None) -> str:
    """`1.25 MB`; decimal units, as storage is sold."""
    if size is None:
        return "-"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"
