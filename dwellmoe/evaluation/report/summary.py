"""The main numbers of a report, one row a variant, and how they are printed."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dwellmoe.evaluation.report.comparison import at_share

HEADINGS = ("variant", "perplexity", "ECR", "LRU hit rate at 25 %", "miss bytes a token")
SCORES = ("pass_at_1", "accuracy", "exact_match", "no_answer", "rouge_l")
CONVENTION = "reference text, decode, cache a layer, cold, atomic"


def summary_rows(report: Mapping) -> list[dict]:
    """A row for each variant: its numbers on the reference text in decode; None where the report has none."""
    return [_row(variant, report) for variant in report["variants"]]


def _row(variant: str, report: Mapping) -> dict:
    wanted = {"variant": variant, "text": "teacher_forced", "phase": "decode"}
    cache = at_share(report["cache"], variant=variant, policy="lru") or {}
    locality = _first(report["locality"], wanted)
    quality = _first(report["quality"], {"variant": variant})
    return {
        "variant": variant,
        **{name: quality.get(name) for name in ("perplexity", "perplexity_ci95")},
        **{name: locality.get(name) for name in ("ecr", "ecr_ci95")},
        **{name: cache.get(name) for name in ("hit_rate", "hit_rate_ci95", "capacity", "capacity_percent")},
        "miss_bytes_per_token": cache.get("miss_bytes_per_token"),
    }


def _first(rows: Sequence[dict], wanted: Mapping) -> dict:
    return next((row for row in rows if all(row.get(name) == value for name, value in wanted.items())), {})


def print_summary(report: Mapping, console: Console) -> None:
    """Prints a table with a row a variant, then re-routing, then the ratios between variants."""
    data = report["data"]
    title = f"{data['dataset']} {data['split']}, {data['requests']} requests; {CONVENTION}"
    table = Table(*HEADINGS, title=title, title_justify="left")
    for row in summary_rows(report):
        numbers = [four_digits(row[name]) for name in ("perplexity", "ecr", "hit_rate")]
        table.add_row(row["variant"], *numbers, readable_bytes(row["miss_bytes_per_token"]))
    console.print(table)
    for row in report["rerouting"]:
        console.print(_rerouting(row), highlight=False)
    for name, comparison in report["comparison"].items():
        ratios = {key: value for key, value in comparison.items() if key.endswith("_ratio")}
        parts = [f"{key.removesuffix('_ratio')} {_times(value)}" for key, value in ratios.items()]
        if (worth := comparison["memory_equivalent_25"]) is not None:
            bound = comparison["memory_equivalent_25_bound"]
            edges = comparison["memory_equivalent_25_ci95"]
            span = f" ({' to '.join(map(four_digits, edges))})" if edges else ""
            parts.append(f"worth {bound + ' ' if bound else ''}{four_digits(worth)}x the cache{span}")
        console.print(f"{name.replace('_', ' ')}: {', '.join(parts)}", highlight=False)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{four_digits(ratio)}x"


def _rerouting(row: Mapping) -> str:
    quality = f", perplexity {four_digits(row['perplexity'])}" if "perplexity" in row else ""
    if "kl_own_path" in row:
        quality = (
            f", perplexity {four_digits(row['perplexity_untouched'])} by the untouched model, KL "
            f"{four_digits(row['kl_own_path'])} (reference {four_digits(row['kl_reference'])}), repeated "
            f"4-grams {four_digits(row['repeated_4grams'])}"
        )
    return (
        f"{row['variant']} ({row['strategy']}), {row['text']}, {row['policy']}, {row['capacity']} slots: "
        f"hits {four_digits(row['hit_rate'])}, {readable_bytes(row['miss_bytes_per_token'])} a token, misses "
        f"{_times(row['misses_ratio'])}{quality}, agreement {four_digits(row['agreement'])}"
    )


def print_answers(report: Mapping, console: Console) -> None:
    """Prints a line a variant: the scores of its answers, and their speed."""
    for quality, speed in zip(report["quality"], report["measured_speed"], strict=True):
        scores = [f"{name} {four_digits(quality[name])}" for name in SCORES if name in quality]
        speeds = [_speed(speed, phase) for phase in ("prefill", "decode")]
        speeds[-1] += f" (adapter {speed['adapter']})" if speed["adapter"] != "none" else ""
        parts = [f"{quality['answered_requests']} answers", *scores, *speeds] if scores else speeds
        if speed["batches_timed"]:
            console.print(f"{quality['variant']}: {', '.join(parts)}", highlight=False)


def _speed(row: Mapping, phase: str) -> str:
    text = f"{phase} {four_digits(row[f'{phase}_tokens_per_second'])} tokens/s"
    merged = row[f"merged_{phase}_tokens_per_second"]
    return text if merged is None else f"{text}, merged {four_digits(merged)}"


def four_digits(value: float | None) -> str:
    """`0.1234`, or `-` for None."""
    return "-" if value is None else f"{value:.4f}"


def three_digits(value: float | None) -> str:
    """`0.662`, `58.2`, `1024`: three decimals below 10, then as many as three digits leave; `–` for None.

    `1.05e+43`, `3.20e-05` where that would be long, or nothing but zeros.
    """
    if value is None:
        return "–"
    if abs(value) >= 1e6 or 0 < abs(value) < 0.0005:
        return f"{value:.2e}"
    decimals = 3 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}"


def readable_bytes(size: float | None) -> str:
    """`1.25 MB`, in decimal units; `-` for None."""
    if size is None:
        return "-"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size:.0f} B"
