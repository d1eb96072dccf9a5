"""The files of a report: `report.json`, the page, figures, samples and traces, in a folder of their own."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.trace import DECODE
from dwellmoe.errors import UserError
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.report.figures import write_figures
from dwellmoe.evaluation.report.folder import REPORT
from dwellmoe.evaluation.report.html_report import write_html
from dwellmoe.evaluation.report.summary import readable_bytes
from dwellmoe.evaluation.requests import Request
from dwellmoe.files import replacing, written_whole
from dwellmoe.provenance import provenance

TITLES = {"base": "Baseline", "tuned": "Tuned", "control": "Control"}
"""Variant -> its name in the samples."""


def write_results(
    target: Path,
    report: dict,
    measured: Mapping[str, Measured],
    requests: Sequence[Request],
    undisclosed: bool = False,
) -> None:
    """Writes report, page, figures, samples and traces into the folder `target`.

    The report gets `made`: command, code and date. Of `undisclosed` data neither text nor tokens are written,
    only numbers.
    """
    report["made"] = provenance()
    with written_whole(target, last=REPORT) as folder:
        for name, found in measured.items():
            for text, recording in found.recordings.items():
                trace = replace(recording.trace, token_ids=None) if undisclosed else recording.trace
                trace.save(folder / f"trace-{name}-{text}.safetensors")
        captions = write_figures(folder, report, measured)
        write_samples(folder / "samples.csv", requests, measured, undisclosed)
        write_html(folder, report, captions)
        report["files"] = sorted([*(file.name for file in folder.iterdir()), REPORT])
        write_json(folder / REPORT, report)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raises UserError if the folder's disk has less room than the results need."""
    free_bytes = disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"results folder '{folder}': the results need about {readable_bytes(needed_bytes)}, "
            f"{readable_bytes(free_bytes)} are free"
        )


def write_json_also(destination: str | None, report: Mapping[str, Any]) -> None:
    """Writes the report to the file of `--json`; `-` is standard output."""
    if destination == "-":
        sys.stdout.write(as_json(report))
    elif destination:
        write_json(Path(destination), report)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes `as_json(report)`; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(as_json(report).encode())


def as_json(report: Mapping[str, Any]) -> str:
    """One JSON object, each row of a table (a list of objects) on its line: they may be thousands. No NaN."""
    entries = ",\n".join(f" {json.dumps(name)}: {_entry(value)}" for name, value in report.items())
    return f"{{\n{entries}\n}}\n"


def _entry(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) + "\n ]"
    return json.dumps(value, allow_nan=False)


def write_samples(
    path: Path, requests: Sequence[Request], measured: Mapping[str, Measured], undisclosed: bool = False
) -> None:
    """CSV of `Input`, then `Output_*` and `ECR_*` of each variant; no ECR for an answer of one token.

    `undisclosed` texts are left out: a request then has its number as input.
    """
    variants = [name for name in TITLES if name in measured]
    ecr = {name: _ecr_by_request(measured[name]) for name in variants}
    inputs = {request.request_id: _input(request, undisclosed) for request in requests}
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        titles = [f"{kind}_{TITLES[name]}" for name in variants for kind in ("Output", "ECR")]
        table.writerow(["Input", *titles])
        for request_id in measured[variants[0]].answers:
            cells = [inputs[request_id]]
            for name in variants:
                cells.append("" if undisclosed else measured[name].answers[request_id].text)
                cells.append(ecr[name].get(request_id, ""))
            table.writerow(cells)


def _input(request: Request, undisclosed: bool) -> str:
    if undisclosed:
        return f"request {request.request_id}, not shown"
    return request.example.prompt or request.example.answer


def _ecr_by_request(measured: Measured) -> dict[int, Any]:
    """Decode ECR of each generated answer."""
    recording = measured.recordings.get("generated")
    if recording is None or not has_pairs(recording.trace, "decode"):
        return {}
    found = metrics.ecr(recording.trace, "decode")
    decoded = recording.trace.request[recording.trace.phase == DECODE]
    request_ids, tokens = np.unique(decoded, return_counts=True)
    means = found.by_request.mean(axis=1) / found.pairs_by_request
    return dict(zip(request_ids[tokens > 1].tolist(), means.tolist(), strict=True))
