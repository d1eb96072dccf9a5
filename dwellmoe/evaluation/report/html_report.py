"""The report as one HTML page with its figures inside."""

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from dwellmoe.cache.replay.report_lines import sections
from dwellmoe.evaluation.report.comparison import rows_where
from dwellmoe.evaluation.report.explorer import chart_data
from dwellmoe.evaluation.report.summary import readable_bytes, summary_rows, three_digits
from dwellmoe.evaluation.report.verdict import verdicts
from dwellmoe.web import page_template

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHARES = (12.5, 25.0, 50.0, 75.0)
SHOWN_SAMPLES = 8
METRICS = {
    "perplexity": "perplexity (lower is better)",
    "accuracy": "accuracy of generated answers",
    "no_answer": "generated texts without an answer (lower is better)",
    "exact_match": "exact match of generated answers",
    "pass_at_1": "pass@1: programs that pass the tests",
    "choice_accuracy": "choice accuracy: the reference is the likeliest choice",
    "rouge_1": "ROUGE-1 (shared words)",
    "rouge_2": "ROUGE-2 (shared pairs of words)",
    "rouge_l": "ROUGE-L (longest shared sequence)",
}
"""Metric -> its heading; more is better where the heading does not say otherwise."""


def write_html(folder: Path, report: Mapping, captions: Mapping[str, str]) -> None:
    """Writes `report.html` into the folder that holds its figures and samples."""
    page = page_template(TEMPLATE, number=_number, span=_span, size=readable_bytes).render(
        report=report,
        verdicts=verdicts(report),
        summary=summary_rows(report),
        locality=sorted(report["locality"], key=_decode_first),
        metrics=_metrics(report["quality"]),
        headings=METRICS,
        shares=SHARES,
        figures=[(name, caption, _embedded(folder / name)) for name, caption in captions.items()],
        hit_rates=[_hit_rate_table(report, *kind) for kind in _kinds(report)],
        reporting=[(row["variant"], row["text"], sections(row)) for row in report["reporting"]],
        samples=_samples(folder / "samples.csv"),
        chart_data=chart_data(report),
    )
    # The command may name paths that are not UTF-8.
    (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")


def _number(value: object) -> str:
    return three_digits(value) if value is None or isinstance(value, float) else str(value)


def _span(interval: list[float] | None) -> str:
    return "" if interval is None else f"{three_digits(interval[0])} … {three_digits(interval[1])}"


def _decode_first(row: Mapping) -> bool:
    return row["phase"] != "decode"


def _metrics(rows: Sequence[Mapping]) -> list[tuple[str, str, Sequence[Mapping]]]:
    """(name of the task or "", metric, its row of each variant) of every metric that was measured."""
    tables: dict[str, Sequence[Mapping]] = {"": rows}
    for task in rows[0].get("by_task") or {}:
        tables[task] = [row["by_task"][task] for row in rows]
    return [
        (task, metric, found)
        for task, found in tables.items()
        for metric in METRICS
        if any(row.get(metric) is not None for row in found)
    ]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _kinds(report: Mapping) -> list[tuple[str, str, str]]:
    """Text, phase and scope of every hit-rate table."""
    rows = sorted(report["cache"], key=_decode_first)
    return list(dict.fromkeys((row["text"], row["phase"], row["scope"]) for row in rows))


def _hit_rate_table(report: Mapping, text: str, phase: str, scope: str) -> dict:
    """A line a policy and variant, a column a share of the experts: the largest cache within that share."""
    rows = rows_where(report["cache"], text=text, phase=phase, scope=scope)
    groups = dict.fromkeys((row["policy"], row["variant"]) for row in rows)
    lines = {
        (policy, variant): rows_where(rows, policy=policy, variant=variant) for policy, variant in groups
    }
    return {
        "title": f"{text}, {phase}, scope {scope}",
        "convention": ", ".join(f"{name} {rows[0][name]}" for name in ("access", "start", "reset")),
        "lines": [(*group, [_within(line, share) for share in SHARES]) for group, line in lines.items()],
    }


def _within(rows: list[dict], share: float) -> dict | None:
    fitting = [row for row in rows if row["capacity_percent"] <= share]
    return max(fitting, key=lambda row: row["capacity"]) if fitting else None


def _samples(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the first rows of the samples, their numbers in three digits."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, [[_cell(*cell) for cell in zip(header, row, strict=True)] for row in rows[:SHOWN_SAMPLES]]


def _cell(title: str, value: str) -> str:
    return three_digits(float(value)) if value and title.startswith("ECR_") else value
