"""How alike the routing of consecutive tokens is: ECR, GDS and LAL.

Pairs are consecutive rows of one request and one phase. Letters: S rows, P pairs, L layers, K experts chosen,
E routed experts.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES, check_phase
from dwellmoe.cache.intervals import RESAMPLES, ratio_interval, ratio_intervals
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.trace import EMPTY, RoutingTrace, release
from dwellmoe.errors import UserError


@dataclass(frozen=True, eq=False)
class Locality:
    """A metric of consecutive tokens: the mean over pairs and layers, per layer, and how sure it is."""

    value: float
    per_layer: list[float]
    pairs: int
    by_request: np.ndarray  # float64 [requests, L]: sum over a request's pairs
    pairs_by_request: np.ndarray  # int64 [requests]
    resamples: int = RESAMPLES

    @classmethod
    def of(cls, by_request: np.ndarray, pairs_by_request: np.ndarray) -> "Locality":
        """The metric of sums over each request's pairs."""
        pairs = pairs_by_request.sum()
        per_layer = by_request.sum(axis=0) / pairs
        return cls(float(per_layer.mean()), per_layer.tolist(), int(pairs), by_request, pairs_by_request)

    @cached_property
    def ci95(self) -> list[float] | None:
        """Bootstrap over requests, made when asked for; None with one request."""
        return ratio_interval(self.by_request.mean(axis=1), self.pairs_by_request, self.resamples)

    @cached_property
    def per_layer_ci95(self) -> list[list[float] | None]:
        """The same of each layer."""
        return ratio_intervals(self.by_request, self.pairs_by_request, self.resamples)


def ecr(trace: RoutingTrace, phase: str = "decode") -> Locality:
    """Expert consistency rate: mean over pairs and layers of |S_t & S_t+1| / K; chance is K / E."""
    return _mean_over_pairs(trace, phase, trace.experts, _shared, 1 / trace.top_k)


def gds(trace: RoutingTrace, phase: str = "decode") -> Locality:
    """Gate distribution similarity: mean of (1 + cos(p_t, p_t+1)) / 2. UserError for a trace without
    gate_probs.
    """
    if trace.gate_probs is None:
        raise UserError("GDS needs a trace recorded with gate_probs")
    return _mean_over_pairs(trace, phase, trace.gate_probs, _similarity, 1.0)


def layer_weighted(per_layer) -> float:
    """sum_l (l / L) x_l / sum_l (l / L), l = 1..L: deeper layers weigh more."""
    weights = np.arange(1, len(per_layer) + 1) / len(per_layer)
    return float(np.dot(weights, per_layer) / weights.sum())


@dataclass(frozen=True)
class LayerWeighted:
    """LAL: layer-weighted ECR."""

    value: float
    ci95: list[float] | None
    unnormalised: float  # sum_l (l / L) ECR_l


def lal(consistency: Locality) -> LayerWeighted:
    """Layer-weighted ECR, in [0, 1], of what `ecr` found."""
    layers = len(consistency.per_layer)
    weights = np.arange(1, layers + 1) / layers
    by_request = consistency.by_request @ weights / weights.sum()
    value = layer_weighted(consistency.per_layer)
    return LayerWeighted(
        value=value,
        ci95=ratio_interval(by_request, consistency.pairs_by_request, consistency.resamples),
        unnormalised=value * (layers + 1) / 2,
    )


@dataclass(frozen=True)
class LocalityRow:
    """ECR, GDS and LAL of one phase with 95 % intervals (`_ci95`); `per_layer` is the ECR of each layer.

    `gds` and its fields are None for a trace without gate_probs.
    """

    phase: str
    pairs: int
    ecr: float
    ecr_ci95: list[float] | None
    chance_ecr: float
    gds: float | None
    gds_ci95: list[float] | None
    lal: float
    lal_ci95: list[float] | None
    lal_unnormalised: float
    per_layer: list[float]
    per_layer_ci95: list[list[float] | None]
    gds_per_layer: list[float] | None
    gds_per_layer_ci95: list[list[float] | None] | None

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


def locality_row(
    trace: RoutingTrace,
    phase: str = "decode",
    similarity: Locality | None = None,
    resamples: int = RESAMPLES,
) -> LocalityRow:
    """Measures one phase of a trace. UserError where no two tokens of a request follow each other in it.

    `similarity`: its GDS, where gate_probs are no longer in the trace.
    """
    if similarity is None and trace.gate_probs is not None:
        similarity = gds(trace, phase)
    similarity = similarity and replace(similarity, resamples=resamples)
    consistency = replace(ecr(trace, phase), resamples=resamples)
    weighted = lal(consistency)
    return LocalityRow(
        phase=phase,
        pairs=consistency.pairs,
        ecr=consistency.value,
        ecr_ci95=consistency.ci95,
        chance_ecr=trace.top_k / trace.num_experts,
        gds=None if similarity is None else similarity.value,
        gds_ci95=None if similarity is None else similarity.ci95,
        lal=weighted.value,
        lal_ci95=weighted.ci95,
        lal_unnormalised=weighted.unnormalised,
        per_layer=consistency.per_layer,
        per_layer_ci95=consistency.per_layer_ci95,
        gds_per_layer=None if similarity is None else similarity.per_layer,
        gds_per_layer_ci95=None if similarity is None else similarity.per_layer_ci95,
    )


def _pairs(trace: RoutingTrace, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 [P] each: the rows of a token and of the next one of its request, both of `phase`."""
    check_phase(phase)
    order = np.argsort(trace.request, kind="stable")
    now, following = order[:-1], order[1:]
    same = (trace.request[now] == trace.request[following]) & (trace.phase[now] == trace.phase[following])
    same &= np.isin(trace.phase[now], PHASES[phase])
    if not same.any():
        raise UserError(f"no two consecutive {phase} steps of one request in the trace")
    return now[same], following[same]


def _mean_over_pairs(trace: RoutingTrace, phase: str, values: np.ndarray, compare, scale: float) -> Locality:
    now, following = _pairs(trace, phase)
    names, request = np.unique(trace.request[now], return_inverse=True)
    sums = np.zeros((len(names), trace.layers))
    compare(values, now, following, request, sums)
    release(values)
    sums *= scale
    return Locality.of(sums, np.bincount(request, minlength=len(names)))


@compiled
def _shared(experts, now, following, request, sums):
    """Adds |S_t & S_t+1| of each pair to sums [requests, L]."""
    for pair in range(len(now)):
        for layer in range(experts.shape[1]):
            for one in experts[now[pair], layer]:
                for other in experts[following[pair], layer]:
                    if one == other and one != EMPTY:
                        sums[request[pair], layer] += 1


def _similarity(probs: np.ndarray, now, following, request, sums) -> None:
    """Adds (1 + cos) / 2 of each pair to sums [requests, L]; a few pairs at a time."""
    for begin in range(0, len(now), 1024):
        part = slice(begin, begin + 1024)
        one, other = probs[now[part]].astype(np.float64), probs[following[part]].astype(np.float64)
        norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
        cosine = (one * other).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)
        np.add.at(sums, request[part], (1 + cosine) / 2)
