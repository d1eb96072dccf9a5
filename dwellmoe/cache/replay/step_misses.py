"""How many experts each layer asks for and misses in each step, as distributions.

A *step of a layer* is one request to a cache: the experts that one layer needs for what ran together.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.budget import Budget
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.kernel.step import MISSES
from dwellmoe.cache.replay.replay import CacheRun
from dwellmoe.cache.replay.sweep import ReplayInputs


class Histogram:
    """Counts of small whole numbers, one row a layer, so that layers may be counted by several threads."""

    def __init__(self, layers: int) -> None:
        self._rows = [np.zeros(1, np.int64) for _ in range(layers)]

    def add(self, layer: int, values: np.ndarray) -> None:
        found = np.bincount(values, minlength=len(self._rows[layer]))
        found[: len(self._rows[layer])] += self._rows[layer]
        self._rows[layer] = found

    def counts(self) -> np.ndarray:
        """int64 [largest number + 1], all layers together."""
        total = np.zeros(max(map(len, self._rows)), np.int64)
        for row in self._rows:
            total[: len(row)] += row
        return total


def quantiles(counts: np.ndarray, shares: Sequence[float]) -> list[int]:
    """For each share the smallest number that at least this share of all numbers does not exceed."""
    below = counts.cumsum()
    ranks = [max(1, int(np.ceil(share * below[-1] - 1e-9))) for share in shares]
    return np.searchsorted(below, ranks).tolist()


def mean_of(counts: np.ndarray) -> float:
    """The mean of the numbers that were counted."""
    return float(counts @ np.arange(len(counts)) / counts.sum())


class StepMisses(CacheRun):
    """One policy at one capacity, which also counts the misses of each step of a layer."""

    def __init__(self, spec: str, budget: Budget, inputs: ReplayInputs) -> None:
        super().__init__(spec, budget, inputs)
        self.misses = Histogram(inputs.trace.layers)

    def feed(self, cache_index: int, stream: Stream) -> None:
        whole, passes = self.residency.counts, len(stream.group)
        each = np.zeros((whole.shape[0], passes, whole.shape[2]), np.int64)
        apart = stream._replace(group=np.arange(passes, dtype=np.int32))
        self.advance_by(self.residency._replace(counts=each), cache_index, apart)
        counted = stream.group < whole.shape[1] - 1
        for layer in range(stream.layer, stream.layer + stream.requests_per_pass):
            _add_by_group(each[layer], stream.group, whole[layer])
            self.misses.add(layer, each[layer, counted, MISSES])


@compiled
def _add_by_group(each, group, whole):
    """Adds the counts of each pass to those of its group; NumPy's `add.at` is slow for rows."""
    for index in range(len(each)):
        for count in range(each.shape[1]):
            whole[group[index], count] += each[index, count]


class StepExperts:
    """Counts the distinct experts of each step of a layer, and accesses to one that the step names again."""

    needs_future = False

    def __init__(self, inputs: ReplayInputs) -> None:
        self.distinct = Histogram(inputs.trace.layers)
        self.repeated = np.zeros(inputs.trace.layers, np.int64)
        self._latest = np.full((inputs.caches, inputs.experts), -1, np.int64)
        self._groups = inputs.groups

    def feed(self, cache_index: int, stream: Stream) -> None:
        distinct = np.zeros(len(stream.starts) - 1, np.int64)
        _count_distinct(stream, self._latest[cache_index], distinct)
        named = np.diff(stream.starts)
        counted = stream.group < self._groups - 1
        for index in range(stream.requests_per_pass):
            part = slice(index, None, stream.requests_per_pass)
            layer = stream.layer + index
            self.distinct.add(layer, distinct[part][counted])
            self.repeated[layer] += (named - distinct)[part][counted].sum()


@compiled
def _count_distinct(stream, latest, distinct):
    for request in range(len(distinct)):
        number = stream.step * stream.requests_per_pass + request
        for access in range(stream.starts[request], stream.starts[request + 1]):
            expert = stream.ids[access]
            if latest[expert] != number:
                latest[expert] = number
                distinct[request] += 1
