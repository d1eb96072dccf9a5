"""Fits a learned policy to a trace, evaluates it on the validation requests and writes its weights."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dwellmoe.cache.learned.weights import save_weights
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training import fitters
from dwellmoe.eviction_training.requests import Split, split_by_request
from dwellmoe.registry import Registry

FITTERS = Registry("learned policy", fitters.__name__, None)
COMPARED = ("lru", "lfu", "lfru", "lrfu:decay=0.95", "opt")
"""Policies whose hit rates on the validation requests are reported beside the fitted one's."""


@dataclass(frozen=True)
class FitSettings:
    """How a policy is fitted."""

    phase: str = "decode"
    capacity: int | str = "25%"
    """Of the cache through which the validation requests are replayed."""
    validation: float = 0.2
    """Share of the requests."""
    seed: int = 0
    epochs: int = 40

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise UserError(f"validation must be a share between 0 and 1, got {self.validation}")
        if self.epochs < 1:
            raise UserError(f"epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True)
class Fitted:
    """The outcome of a fit: weights, what else the policy needs with them, and the log."""

    tensors: dict[str, np.ndarray]
    facts: dict
    log: list[dict]


def fit(
    trace: RoutingTrace, policy: str, out: str, settings: FitSettings, progress: Progress | None = None
) -> dict:
    """Fits `policy` on most requests of `trace` and writes its weights to `out`.

    Returns the log of the fit and hit-rate rows of the validation requests, of the policy and of `COMPARED`,
    and what else the policy's fitter judges on them.
    UserError for an unknown policy or a trace with too few requests.
    """
    fitter = FITTERS.get(policy)
    layout = parse_policy(policy)[0].LAYOUT
    split = split_by_request(trace, settings.phase, settings.validation, settings.seed)
    found: Fitted = fitter.fit(split, settings, progress)
    facts = {
        "model": trace.model,
        "source": trace.source,
        **_requests(split),
        **asdict(settings),
        **found.facts,
    }
    save_weights(out, policy, layout, found.tensors, facts)
    rows = validation_rows(split, [*COMPARED, f"{policy}:weights={out}"], settings)
    result = {"policy": policy, "weights": str(out), "facts": facts, "log": found.log, "cache": rows}
    judge = getattr(fitter, "judge", None)
    return result | (judge(split, str(out)) if judge else {})


def _requests(split: Split) -> dict[str, str | int]:
    """How many requests the policy was fitted to, and of which categories where the trace names them."""
    requests = np.unique(split.train.request).tolist()
    known = split.train.categories or {}
    categories = sorted({known[request] for request in requests if request in known})
    return {"training_requests": len(requests)} | (
        {"categories": ", ".join(categories)} if categories else {}
    )


def validation_rows(split: Split, policies: Sequence[str], settings: FitSettings) -> list[HitRateRow]:
    """Hit-rate rows of the validation requests (cold, a cache a layer, atomic)."""
    return curve(split.validation, policies, [settings.capacity])


def validation_hit_rate(
    split: Split, policy: str, layout: str, tensors: dict[str, np.ndarray], settings: FitSettings
) -> float:
    """Hit rate of a policy with these weights on the validation requests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_weights(path, policy, layout, tensors, {})
        (row,) = validation_rows(split, [f"{policy}:weights={path}"], settings)
    return row.hit_rate
