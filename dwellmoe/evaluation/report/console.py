"""Knows how a report is told on a terminal in one table; does not know what else it holds."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from dwellmoe.evaluation.report.summary import HEADINGS, readable_bytes, summary_rows

SCORES = ("pass_at_1", "accuracy", "no_answer", "rouge_l")
COUNTED = "reference text, decode, cache a layer, cold, atomic"


def print_summary(report: Mapping, console: Console) -> None:
    """One row a variant, with the convention of the numbers above and the ratios below."""
    data = report["data"]
    title = f"{data['dataset']} {data['split']}, {data['requests']} requests; {COUNTED}"
    table = Table(*HEADINGS, title=title, title_justify="left")
    for row in summary_rows(report):
        cells = (_number(row["perplexity"]), _number(row["ecr"]), _number(row["hit_rate"]))
        table.add_row(row["variant"], *cells, readable_bytes(row["miss_bytes_per_token"]))
    console.print(table)
    for row in report["rerouting"]:
        console.print(_rerouted(row), highlight=False)
    for name, ratios in report["comparison"].items():
        told = {key: value for key, value in ratios.items() if key.endswith("_ratio")}
        words = ", ".join(f"{key.removesuffix('_ratio')} {_number(value)}x" for key, value in told.items())
        console.print(f"{name.replace('_', ' ')}: {words}", highlight=False)


def _rerouted(row: Mapping) -> str:
    quality = f", perplexity {_number(row['perplexity'])}" if "perplexity" in row else ""
    return (
        f"{row['variant']} ({row['strategy']}), {row['text']}, {row['policy']}, {row['capacity']} slots: "
        f"hits {_number(row['hit_rate'])}, {readable_bytes(row['miss_bytes_per_token'])} a token, misses "
        f"{_number(row['misses_ratio'])}x{quality}, agreement {_number(row['agreement'])}"
    )


def print_answers(report: Mapping, console: Console) -> None:
    """One line a variant: what its answers were worth, and how fast they came."""
    rows = zip(report["quality"], report["measured_speed"], strict=True)
    for quality, speed in rows:
        scores = [f"{name} {_number(quality[name])}" for name in SCORES if name in quality]
        speeds = [
            f"{kind} {_number(speed[f'{kind}_tokens_per_second'])} tokens/s" for kind in ("prefill", "decode")
        ]
        told = [f"{quality['answered_requests']} answers", *scores, *speeds] if scores else speeds
        if speed["batches_timed"]:
            console.print(f"{quality['variant']}: {', '.join(told)}", highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
