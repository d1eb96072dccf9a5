"""Features and labels of every step of a trace, made by the code that computes them in the policies.

Letters: T token steps, E experts a layer, F features, I inputs of a net.
"""

import numpy as np

from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.learned import forecast, routing_statistics, uses
from dwellmoe.cache.learned.routing_statistics import NAMES, RoutingStatistics
from dwellmoe.cache.learned.uses import Uses
from dwellmoe.cache.policies.ml_flashmoe import write_inputs
from dwellmoe.cache.trace import EMPTY, RoutingTrace

NEVER_AGAIN = 1 << 30


def requested(trace: RoutingTrace, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, starts): step t needs ids[starts[t] : starts[t + 1]]; empty slots are left out."""
    chosen = trace.experts[:, layer]
    present = chosen != EMPTY
    return chosen[present].astype(np.int32), np.append(0, np.cumsum(present.sum(axis=1))).astype(np.int64)


def distances(ids: np.ndarray, starts: np.ndarray, experts: int) -> np.ndarray:
    """int64 [T, E]: steps to the next use, strictly after each step; NEVER_AGAIN for none."""
    found = np.empty((len(starts) - 1, experts), np.int64)
    _distances(ids, starts, found)
    return found


def recency_and_frequency(ids: np.ndarray, starts: np.ndarray, experts: int) -> np.ndarray:
    """float32 [T, 2E], laid out as `ml_flashmoe` reads them; columns e and E + e are those of expert e."""
    x_TI = np.zeros((len(starts) - 1, 2 * experts), np.float32)
    _recency_and_frequency(Uses.allocate(1, experts), ids, starts, experts, x_TI)
    return x_TI


def habit_features(ids: np.ndarray, starts: np.ndarray, experts: int) -> np.ndarray:
    """float64 [T, E, F], as `ml_habits` reads them."""
    x_TEF = np.zeros((len(starts) - 1, experts, len(NAMES)))
    _habit_features(RoutingStatistics.allocate(1, experts, 1), ids, starts, x_TEF)
    return x_TEF


def forecast_features(ids: np.ndarray, starts: np.ndarray, experts: int) -> np.ndarray:
    """float32 [T, E, F], as `ml_forecast` reads them."""
    x_TEF = np.zeros((len(starts) - 1, experts, len(forecast.NAMES)), np.float32)
    _forecast_features(RoutingStatistics.allocate(1, experts, 1, forecast.DECAYS), ids, starts, x_TEF)
    return x_TEF


@compiled
def _distances(ids, starts, found):
    following = np.full(found.shape[1], -1, np.int64)
    for step in range(len(starts) - 2, -1, -1):
        for expert in range(found.shape[1]):
            known = following[expert] >= 0
            found[step, expert] = following[expert] - step if known else NEVER_AGAIN
        for i in range(starts[step], starts[step + 1]):
            following[ids[i]] = step


@compiled
def _recency_and_frequency(state, ids, starts, experts, x_TI):
    for step in range(len(starts) - 1):
        uses.count_request(state, 0, ids, starts[step], starts[step + 1], step)
        write_inputs(state, 0, 0, experts, step, x_TI[step])


@compiled
def _habit_features(state, ids, starts, x_TEF):
    for step in range(len(starts) - 1):
        routing_statistics.count_request(state, 0, 0, ids, starts[step], starts[step + 1], step)
        for expert in range(x_TEF.shape[1]):
            routing_statistics.write_features(state, 0, expert, x_TEF[step, expert])


@compiled
def _forecast_features(state, ids, starts, x_TEF):
    for step in range(len(starts) - 1):
        routing_statistics.count_request(state, 0, 0, ids, starts[step], starts[step + 1], step)
        for expert in range(x_TEF.shape[1]):
            forecast.write_features(state, 0, 0, expert, expert, x_TEF[step, expert])
