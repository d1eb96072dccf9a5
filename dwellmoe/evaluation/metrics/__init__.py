"""Knows which metrics there are: one folder each, holding an `evaluate` module that loads without the hub."""

from pathlib import Path

import evaluate

from dwellmoe.errors import unknown_name

FOLDER = Path(__file__).resolve().parent


def metric_names() -> list[str]:
    """Names of the metrics: the folders here that hold a module of their own name."""
    return sorted(path.parent.name for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name)


def load_metric(name: str) -> evaluate.EvaluationModule:
    """The metric of that name; its `compute` gives `<metric>` and `<metric>_ci95`. Raises UserError if
    unknown.
    """
    if name not in metric_names():
        raise unknown_name("metric", name, metric_names())
    return evaluate.load(str(FOLDER / name))
