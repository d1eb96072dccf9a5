"""Knows what all metrics tell `evaluate` of themselves; measures nothing.

A metric's file imports this module, not the class: `evaluate` takes the first metric it finds in the file.
"""

import sys
from collections.abc import Mapping
from typing import ClassVar

import datasets
import evaluate


class RequestMetric(evaluate.Metric):
    """A metric over requests; `COLUMNS` names what `compute` takes of each, and its type in `datasets`.

    `compute` also takes `resamples`, of the requests behind each interval.
    """

    COLUMNS: ClassVar[Mapping[str, str]]

    def _info(self):
        features = {name: datasets.Value(kind) for name, kind in self.COLUMNS.items()}
        return evaluate.MetricInfo(
            description=str(sys.modules[type(self).__module__].__doc__),
            citation="",
            inputs_description=str(type(self).__doc__),
            features=datasets.Features(features),
        )
