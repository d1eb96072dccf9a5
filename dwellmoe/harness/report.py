"""What a run of the harness writes and prints: the harness's own results, and routing beside each score."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.evaluation.report.folder import REPORT
from dwellmoe.evaluation.report.output import write_json, write_json_also
from dwellmoe.evaluation.report.summary import four_digits, readable_bytes
from dwellmoe.files import written_whole
from dwellmoe.harness.routing_rows import AS_DECODED, rerouting_counts, routing_rows, token_counts
from dwellmoe.provenance import provenance

SCHEMA_VERSION = 1
CONVENTION = "routing: all tokens of a task as if decoded one by one; a cache a layer, cold, atomic"
SAMPLES = "samples"
NOT_SCORES = ("alias", "name", "sample_len", "sample_count")
"""What stands beside the metrics of a task in the harness's results."""


def task_rows(
    found: Mapping[str, Any],
    policies: Sequence[str],
    capacity_of: Callable[[RoutingTrace], int],
    resamples: int,
    expert_bytes: Sequence[int],
) -> list[dict[str, Any]]:
    """A row for each task that one name stands for: its scores, and the routing of the tokens it ran."""
    results = json.loads(found["results"])
    rows = []
    for task, trace in found["traces"].items():
        row = {"variant": found["variant"], "task": task, "scores": _scores(results["results"].get(task, {}))}
        row |= token_counts(trace) | routing_rows(trace, policies, capacity_of(trace), resamples)
        if task in found["tallies"]:
            row["rerouting"] = rerouting_counts(found["tallies"][task], expert_bytes)
        rows.append(row)
    groups = results.get("groups") or {}
    return rows + [
        {"variant": found["variant"], "task": group, "scores": _scores(scores)}
        for group, scores in groups.items()
        if group not in found["traces"]
    ]


def _scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as the harness names them ("acc,none"); None for what is not a finite number."""
    return {
        name: value if not isinstance(value, float) or math.isfinite(value) else None
        for name, value in metrics.items()
        if name not in NOT_SCORES
    }


def write_report(
    folder: Path, report: dict[str, Any], ran: Sequence[dict[str, Any]], json_path: str | None
) -> None:
    """Writes `report.json`, the harness's own results of each variant, traces, and samples if any."""
    report = {"schema_version": SCHEMA_VERSION, "made": provenance(), **report}
    with written_whole(folder, last=REPORT) as unfinished:
        for variant in report["variants"]:
            mine = [found for found in ran if found["variant"] == variant]
            _write_variant(unfinished, variant, mine)
        report["files"] = sorted([*(file.name for file in unfinished.iterdir()), REPORT])
        write_json(unfinished / REPORT, report)
    write_json_also(json_path, report)


def _write_variant(folder: Path, variant: str, ran: Sequence[dict[str, Any]]) -> None:
    results = [json.loads(found["results"]) for found in ran]
    for found in results:
        for task, samples in (found.pop(SAMPLES, None) or {}).items():
            lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
            (folder / f"samples-{variant}-{_file_name(task)}.jsonl").write_text(lines, encoding="utf-8")
    text = json.dumps(merged(results), indent=2, ensure_ascii=False)
    (folder / f"results-{variant}.json").write_text(text + "\n", encoding="utf-8")
    for found in ran:
        for task, trace in found["traces"].items():
            trace.save(folder / f"trace-{variant}-{_file_name(task)}.safetensors")


def merged(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Results of several calls of the harness as one: tables are joined, the rest is that of the first."""
    whole: dict[str, Any] = {}
    for found in results:
        for name, value in found.items():
            if isinstance(value, dict) and isinstance(whole.get(name), dict):
                whole[name] = whole[name] | value
            else:
                whole.setdefault(name, value)
    return whole


def _file_name(task: str) -> str:
    return re.sub(r"[^\w.-]+", "_", task)


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints the scores and the routing of each task and variant."""
    console.print(CONVENTION)
    for row in report["tasks"]:
        console.print(f"{row['task']}, {row['variant']}: {_score(row['scores'])}")
        if "cache" in row:
            console.print(f"  {_routing(row)}")


def _score(scores: Mapping[str, Any]) -> str:
    """`acc 0.2500 +- 0.0500, ...`, of the metrics that are numbers."""
    numbers = {name: value for name, value in scores.items() if isinstance(value, int | float)}
    parts = []
    for name, value in numbers.items():
        metric, _, kind = name.partition(",")
        if metric.endswith("_stderr"):
            continue
        error = numbers.get(f"{metric}_stderr,{kind}")
        filtered = "" if kind in ("", "none") else f" ({kind})"
        deviation = "" if error is None else f" +- {four_digits(error)}"
        parts.append(f"{metric}{filtered} {four_digits(value)}{deviation}")
    return ", ".join(parts)


def _routing(row: Mapping[str, Any]) -> str:
    locality = next((found for found in row["locality"] if found["tokens"] == AS_DECODED), None)
    cache = next(found for found in row["cache"] if found["tokens"] == AS_DECODED)
    consistency = f"ECR {locality['ecr']:.3f} (chance {locality['chance_ecr']:.3f}), " if locality else ""
    return (
        f"{row['prefill_tokens'] + row['decode_tokens']} tokens, {consistency}{cache['policy']} hit rate "
        f"{cache['hit_rate']:.4f} with {cache['capacity']} experts a layer, "
        f"{readable_bytes(cache['miss_bytes_per_token'])} missed a token"
    )
