"""Targets of training, given in place of a weight: a rate of the routing, or a largest rise of the loss."""

import json
from dataclasses import dataclass
from pathlib import Path

from dwellmoe.cache.budget import check_capacity
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.locality.rates import CACHE_SHARE, ecr_per_layer, hit_rate

TOLERANCE = 0.03
"""How far from a rate, as a share of it, a run may end and have met it."""


@dataclass(frozen=True)
class Target:
    """A rate to reach (`ecr`, `hit_rate`), or a largest rise of the validation loss, in nats (`budget`)."""

    kind: str
    value: float
    policy: str = "lru"
    capacity: str = f"{CACHE_SHARE:.0%}"

    @property
    def metric(self) -> str:
        """The controlled quantity's name among the metrics of a validation."""
        return {"ecr": "ecr", "hit_rate": "hit_rate_target", "budget": "lm_loss"}[self.kind]

    @property
    def text(self) -> str:
        """The controlled quantity, in words."""
        names = {"ecr": "ECR", "budget": "rise of the validation loss"}
        return names.get(self.kind, f"hit rate {self.policy}@{self.capacity}")

    def measure(self, trace: RoutingTrace) -> float:
        """The rate of a trace; every token counts as decoded."""
        if self.kind == "ecr":
            return float(ecr_per_layer(trace).mean())
        return hit_rate(trace, self.policy, self.capacity)

    def met_by(self, value: float) -> bool:
        """Whether a held-out value meets the target."""
        return value <= self.value if self.kind == "budget" else value >= self.value * (1 - TOLERANCE)

    def score(self, value: float, metrics: dict[str, float]) -> float:
        """By which checkpoints are compared, least is best: those that meet the target by their loss (with a
        budget by their ECR), before all others by how far they are from it.
        """
        good = -metrics["eval_ecr"] if self.kind == "budget" else metrics["eval_lm_loss"]
        return good if self.met_by(value) else 1e3 * (1 + abs(value - self.value) / self.value)


def target_of(ecr: float | None, hit_rate: str | None, budget: float | None) -> Target | None:
    """The one target that is given, or None. Raises UserError for two, and for one that cannot be."""
    given = {"--target_ecr": ecr, "--target_hit_rate": hit_rate, "--quality_budget": budget}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)}: one weight can follow only one target, give one of them")
    if hit_rate is not None:
        return _parse_hit_rate(hit_rate)
    if budget is not None and not budget > 0:
        raise UserError(f"--quality_budget {budget}: must be above 0 (nats of validation loss, e.g. 0.01)")
    if budget is not None:
        return Target("budget", budget)
    return None if ecr is None else Target("ecr", _rate("--target_ecr", ecr))


def _parse_hit_rate(text: str) -> Target:
    """`POLICY@CAPACITY=RATE`, e.g. lru@25%=0.8."""
    where, _, rate = text.rpartition("=")
    policy, _, capacity = where.rpartition("@")
    option = f"--target_hit_rate {text}"
    try:
        value = float(rate)
    except ValueError:
        value = -1.0
    if not policy:
        raise UserError(f"{option}: expected POLICY@CAPACITY=RATE, e.g. lru@25%=0.8")
    parse_policy(policy)
    check_capacity(capacity)
    return Target("hit_rate", _rate(option, value), policy, capacity)


def _rate(option: str, value: float) -> float:
    if not 0 < value < 1:
        raise UserError(f"{option}: a rate lies between 0 and 1")
    return value


def control_losses(folder: str) -> list[tuple[int, float]]:
    """(step, validation loss) of the finished training run in `folder`. UserError where there is none."""
    path = Path(folder) / "training_summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entry in summary["log_history"] if "eval_lm_loss" in entry]
        losses = {entry["step"]: float(entry["eval_lm_loss"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"--quality_reference {folder}: no readable training_summary.json there") from None
    if not losses:
        raise UserError(f"--quality_reference {folder}: the run never validated")
    return sorted(losses.items())
