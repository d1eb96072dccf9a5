"""Knows every file a report leaves in its folder; does not know what the numbers mean."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.figures import write_figures
from dwellmoe.evaluation.report.folder import REPORT, as_json, choose_folder, write_json
from dwellmoe.evaluation.report.html_report import write_html
from dwellmoe.evaluation.report.samples import write_samples
from dwellmoe.evaluation.requests import Request
from dwellmoe.files import written_whole


def write_results(
    wanted: Path,
    report: dict,
    measured: Mapping[str, Measured],
    requests: Sequence[Request],
    undisclosed: bool = False,
) -> Path:
    """Writes report, page, figures, samples and traces; gives the folder they are in.

    A folder that holds a report of other settings is left alone, and the next numbered one is used. Where the
    data are `undisclosed`, neither their text nor their tokens are written.
    """
    target = choose_folder(wanted, report["settings"])
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
    return target


def write_also(destination: str | None, report: dict) -> None:
    """The report once more where `--json` wants it: a path, or `-` for standard output."""
    if destination == "-":
        sys.stdout.write(as_json(report))
    elif destination:
        write_json(Path(destination), report)
