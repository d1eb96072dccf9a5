"""The metrics: one folder each, holding an `evaluate` module that loads without the hub."""

import evaluate

from dwellmoe.registry import Registry

METRICS = Registry("metric", __name__, None, skip=("base",))


def metric_names() -> list[str]:
    """Names of the metrics."""
    return METRICS.names()


def load_metric(name: str) -> evaluate.EvaluationModule:
    """The metric of that name; its `compute` gives `<metric>` and `<metric>_ci95`. Raises UserError if
    unknown.
    """
    return evaluate.load(METRICS.get(name).__path__[0])
