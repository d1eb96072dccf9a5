"""Knows the table of single answers, base beside tuned; does not know how they were made."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.trace import DECODE
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.requests import Request

TITLES = {"base": "Baseline", "tuned": "Tuned", "control": "Control"}


def write_samples(
    path: Path, requests: Sequence[Request], measured: Mapping[str, Measured], undisclosed: bool = False
) -> None:
    """CSV of `Input`, then `Output_*` and `ECR_*` a variant; no ECR where an answer has no pair of tokens.

    Texts that are `undisclosed` are left out: a request is then told by its number.
    """
    variants = [name for name in TITLES if name in measured]
    ecr = {name: _ecr_by_request(measured[name]) for name in variants}
    inputs = {
        request.number: f"request {request.number}, not shown"
        if undisclosed
        else request.example.prompt or request.example.answer
        for request in requests
    }
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        titles = [f"{kind}_{TITLES[name]}" for name in variants for kind in ("Output", "ECR")]
        table.writerow(["Input", *titles])
        for number in measured[variants[0]].answers:
            texts = [("" if undisclosed else measured[name].answers[number].text) for name in variants]
            cells = [(text, ecr[name].get(number, "")) for text, name in zip(texts, variants, strict=True)]
            table.writerow([inputs[number], *(cell for pair in cells for cell in pair)])


def _ecr_by_request(measured: Measured) -> dict[int, float]:
    """Decode ECR of each generated answer."""
    recording = measured.recordings.get("generated")
    if recording is None or not has_pairs(recording.trace, "decode"):
        return {}
    found = metrics.ecr(recording.trace, "decode")
    answered = recording.trace.request[recording.trace.phase == DECODE]
    numbers, rows = np.unique(answered, return_counts=True)
    means = found.by_request.mean(axis=1) / found.pairs_by_request
    return dict(zip(numbers[rows > 1].tolist(), means.tolist(), strict=True))
