"""How good forecasts of coming uses are on the decoded tokens of a trace.

Letters: T token steps, L layers, E experts a layer, H horizons.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dwellmoe.cache.access import gather, layer_ids_of, used_by
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.learned import forecast
from dwellmoe.cache.learned.forecast import HORIZONS, Forecast
from dwellmoe.cache.prediction import quality
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import DECODE, RoutingTrace, as_decode
from dwellmoe.errors import UserError

SHARE = "uses so far"
PSEUDOCOUNT = 4.0
"""Token steps at chance before an expert's share of uses counts for itself."""


@dataclass(frozen=True)
class ForecastRow:
    """How well one predictor forecasts use within one horizon; means over the layers.

    K is the number of experts that a layer really uses within the horizon.
    """

    predictor: str
    horizon_tokens: int
    log_loss: float
    """Nats an expert."""
    recall_at_k: float
    recall_at_2k: float
    calibration_error: float
    tokens: int

    def as_dict(self) -> dict:
        return asdict(self)


def forecast_quality(
    trace: RoutingTrace, weights: str = "", progress: Progress | None = None
) -> list[ForecastRow]:
    """Rows of `ml_forecast` with these weights and of each expert's share of the uses so far.

    A step's forecast is made after its experts are known; the last steps, whose horizon the trace does not
    hold, are left out. UserError for a trace of fewer decoded tokens than that.
    """
    if not (trace.phase == DECODE).sum() > max(HORIZONS):
        raise UserError(f"judging forecasts needs more than {max(HORIZONS)} decoded tokens")
    decoded = as_decode(trace, trace.phase == DECODE)
    state = Forecast.allocate(trace.layers, trace.num_experts, trace.layers, weights)
    layer_ids = _layer_ids(decoded)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for layer in range(trace.layers):
        used_TE = used_by(decoded, layer)
        predicted = {
            "ml_forecast": _forecast(state, layer, used_TE, layer_ids),
            SHARE: _by_share(used_TE),
        }
        for name, p_HTE in predicted.items():
            for horizon, p_TE in zip(HORIZONS, p_HTE, strict=True):
                judged = quality(p_TE[:-horizon, None], used_within(used_TE, horizon)[:, None])
                found.setdefault((name, horizon), []).append(judged)
        if progress:
            progress(layer + 1, trace.layers)
    return list(_rows(found, decoded.steps))


def used_within(used_TE: np.ndarray, horizon: int) -> np.ndarray:
    """bool [T - horizon, E]: whether an expert is used in one of the `horizon` steps after each step."""
    later = np.lib.stride_tricks.sliding_window_view(used_TE[1:], horizon, axis=0)
    return np.asarray(later.any(axis=-1))


def forecast_lines(rows: Sequence[ForecastRow]) -> list[str]:
    """The rows as a table."""
    head = f"{'forecast':<14}{'tokens':>8}{'log-loss':>10}{'recall@K':>10}{'recall@2K':>11}"
    head += f"{'calibration error':>19}"
    return [head] + [
        f"{row.predictor:<14}{row.horizon_tokens:8d}{row.log_loss:10.4f}{row.recall_at_k:10.3f}"
        f"{row.recall_at_2k:11.3f}{row.calibration_error:19.4f}"
        for row in rows
    ]


def _layer_ids(decoded: RoutingTrace) -> np.ndarray:
    """`Stream.layer_ids`, each row a pass."""
    begin, shape = np.arange(decoded.steps), (decoded.layers, decoded.num_experts)
    alone = np.zeros(decoded.steps, np.bool_)
    ids, starts = gather(decoded.experts, begin, begin + 1, alone, 0, *shape)
    return layer_ids_of(ids, starts, *shape, missing=1)


def _forecast(state: Forecast, layer: int, used_TE: np.ndarray, layer_ids: np.ndarray) -> np.ndarray:
    """float32 [H, T, E]"""
    p_HTE = np.empty((len(HORIZONS), *used_TE.shape), np.float32)
    _run(state, layer, used_TE, layer_ids, p_HTE)
    return p_HTE


@compiled
def _run(state, layer, used_TE, layer_ids, p_HTE):
    for step in range(len(used_TE)):
        ids = np.flatnonzero(used_TE[step]).astype(np.uint32)
        forecast.look_around(state, layer, layer_ids, step + 1)
        forecast.count_request(state, layer, layer, ids, 0, len(ids), step)
        for expert in range(used_TE.shape[1]):
            forecast.write_likelihoods(state, layer, expert, p_HTE[:, step, expert])


def _by_share(used_TE: np.ndarray) -> np.ndarray:
    """float64 [H, T, E]: 1 - (1 - share of the steps so far) ** horizon."""
    chance = used_TE[0].mean()
    steps = np.arange(1, len(used_TE) + 1)[:, None]
    share_TE = (used_TE.cumsum(axis=0) + PSEUDOCOUNT * chance) / (steps + PSEUDOCOUNT)
    return np.stack([1 - (1 - share_TE) ** horizon for horizon in HORIZONS])


def _rows(found: dict[tuple[str, int], list[dict[str, float]]], tokens: int) -> Iterator[ForecastRow]:
    for (name, horizon), judged in sorted(found.items(), key=lambda item: item[0][0] == SHARE):
        means = {measure: float(np.mean([layer[measure] for layer in judged])) for measure in judged[0]}
        yield ForecastRow(predictor=name, horizon_tokens=horizon, tokens=tokens - horizon, **means)
