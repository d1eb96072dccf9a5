"""The metrics of answers: one file each, an `evaluate` module that loads without the hub."""

import sys
from collections.abc import Mapping
from typing import ClassVar

import datasets
import evaluate

from dwellmoe.registry import Registry

METRICS = Registry("metric", __name__, None)


class RequestMetric(evaluate.Metric):
    """A metric over requests; `COLUMNS` maps what `compute` takes of each request to its type in `datasets`.

    `compute` also takes `resamples`: bootstrap resamples of the requests for each interval. A metric's file
    imports this module and not the class, since `evaluate` takes the first metric it finds in the file.
    """

    COLUMNS: ClassVar[Mapping[str, str]]

    def compute(self, **inputs):
        """As of `evaluate`; half a surrogate pair, which no file can hold, becomes a question mark."""
        for name, kind in self.COLUMNS.items():
            if kind == "string":
                inputs[name] = [text.encode("utf-8", "replace").decode() for text in inputs[name]]
        return super().compute(**inputs)

    def _info(self):
        features = {name: datasets.Value(kind) for name, kind in self.COLUMNS.items()}
        return evaluate.MetricInfo(
            description=str(sys.modules[type(self).__module__].__doc__),
            citation="",
            inputs_description=str(type(self).__doc__),
            features=datasets.Features(features),
        )


def load_metric(name: str) -> evaluate.EvaluationModule:
    """The metric of that name; its `compute` returns `<metric>` and `<metric>_ci95`. UserError if unknown."""
    return evaluate.load(METRICS.get(name).__file__)
