"""What a trace and a device say about a model: which budget and policy, and what would help it most.

Speeds are those of `plan.py`, upper bounds. Everything is compared with the same baseline: LRU in the largest
cache that fits. Quality is not in a trace, so no comparison here knows what a change costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.intervals import ratio_interval
from dwellmoe.cache.metrics import ecr
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.gap import OPTIMUM, gap_share
from dwellmoe.cache.replay.memory_equivalent import matching_capacity
from dwellmoe.cache.replay.plan import PlanRow, check_sizes, plan
from dwellmoe.cache.replay.replay import misses_by_request
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import DECODE, RoutingTrace

BASELINE = "lru"
POLICIES = ("lfu", "lfru", "lrfu:decay=0.95", "arc", "s3fifo", "ml_habits")
"""Policies without knowledge of the future that are replayed beside the baseline."""
LOW_BITS = {"int8": 8.0, "int4": 5.0}
"""Format -> bits a weight, scales included; int4 with a scale and a zero for each group of 32."""
STORED_BITS = 16.0
TRAINING = {"measured here": 0.66, "reported elsewhere": 0.93}
"""Where -> misses after training for locality over those before: models/tiny-olmoe at 25 % (docs/results.md),
and ReMoE on DeepSeek-V2-Lite at C = K (0.927)."""
NEARLY = 0.95
"""Share of the speed of the largest budget at which a smaller one is named."""


@dataclass(frozen=True)
class PolicyRow:
    """One eviction policy at the budget that fits, against the baseline; `ratio` is of misses."""

    policy: str
    hit_rate: float
    ratio: float
    ratio_ci95: list[float] | None
    gap_share: float | None

    @property
    def is_better(self) -> bool:
        """Whether the interval over requests says that it misses less."""
        return self.ratio_ci95 is not None and self.ratio_ci95[1] < 1


@dataclass(frozen=True)
class Change:
    """What a change of the model, or of its routing, would make of the baseline.

    source  "replayed" on this trace, "computed" from sizes, or "assumed" from measurements of other models
    """

    name: str
    source: str
    capacity: int
    misses_per_token: float
    miss_bytes_per_token: float
    tokens_per_second: float
    worth_capacity: float | None
    """Slots a layer that the baseline would need to miss as seldom, of what was replayed."""


@dataclass(frozen=True)
class Advice:
    """The budget, the policies at it, and the changes; `budget` is None where no cache fits."""

    device: DeviceProfile
    model: str
    layers: int
    experts: int
    top_k: int
    requests: int
    decode_tokens: int
    resident_bytes: int
    expert_bits: float
    ecr: float
    chance_ecr: float
    smallest: PlanRow
    budget: PlanRow | None
    nearly: PlanRow | None
    compulsory_share: float
    policies: list[PolicyRow]
    optimum_hit_rate: float | None
    tokens_per_second_without_misses: float
    changes: list[Change]

    @property
    def all_fit(self) -> bool:
        return self.budget is not None and self.budget.capacity == self.experts

    @property
    def best_policy(self) -> str:
        """The policy with the fewest misses of those that are better beyond chance, else the baseline."""
        better = [row for row in self.policies if row.is_better]
        return min(better, key=lambda row: row.ratio).policy if better else BASELINE

    def as_dict(self) -> dict[str, Any]:
        """The advice as one JSON object."""
        return asdict(self) | {"all_fit": self.all_fit, "best_policy": self.best_policy}


Rerouted = Callable[[int], np.ndarray]
"""Slots a layer -> misses of this trace in each layer, int64 [L], when it is re-routed."""


def advise(
    trace: RoutingTrace,
    device: DeviceProfile,
    resident_bytes: int,
    expert_bits: float = STORED_BITS,
    rerouted: Rerouted | None = None,
    progress: Progress | None = None,
) -> Advice:
    """The advice for decoding `trace` on `device`.

    expert_bits  bits of a weight of the experts whose bytes the trace states
    rerouted     replays the trace re-routed; None: the trace does not hold what that needs
    UserError for a trace without `expert_bytes`, and as for `curve`.
    """
    check_sizes(trace)
    rows = curve(trace, [BASELINE], progress=progress, resamples=0)
    planned = plan(trace, device, rows, resident_bytes)
    fitting = [row for row in planned.rows if row.fits]
    budget = max(fitting, key=lambda row: row.capacity) if fitting else None
    is_partial = budget is not None and budget.capacity < trace.num_experts
    policies, optimum = _policies(trace, budget.capacity) if budget and is_partial else ([], None)
    baseline = _Baseline(trace, device, rows, resident_bytes)
    chosen = row_at(rows, (budget or planned.rows[0]).capacity)
    return Advice(
        device=device,
        model=trace.model,
        layers=trace.layers,
        experts=trace.num_experts,
        top_k=trace.top_k,
        requests=len(set(trace.request.tolist())),
        decode_tokens=_tokens(trace),
        resident_bytes=resident_bytes,
        expert_bits=expert_bits,
        ecr=ecr(trace, "decode").value,
        chance_ecr=trace.top_k / trace.num_experts,
        smallest=planned.rows[0],
        budget=budget,
        nearly=_nearly(fitting) if is_partial else None,
        compulsory_share=chosen.compulsory_misses / max(1, chosen.misses),
        policies=policies,
        optimum_hit_rate=optimum,
        tokens_per_second_without_misses=1 / baseline.seconds(0, 0),
        changes=_changes(baseline, expert_bits, budget, rerouted),
    )


def _tokens(trace: RoutingTrace) -> int:
    return int((trace.phase == DECODE).sum())


def row_at(rows: Sequence[HitRateRow], capacity: int) -> HitRateRow:
    """The row of a capacity that is among them."""
    return next(row for row in rows if row.capacity == capacity)


def _nearly(fitting: Sequence[PlanRow]) -> PlanRow:
    """The smallest budget that is nearly as fast as the largest."""
    fastest = max(row.tokens_per_second for row in fitting)
    fast = [row for row in fitting if row.tokens_per_second >= NEARLY * fastest]
    return min(fast, key=lambda row: row.capacity)


def _policies(trace: RoutingTrace, capacity: int) -> tuple[list[PolicyRow], float]:
    """Every policy against the baseline, and the hit rate of the optimum."""
    found = curve(trace, [BASELINE, *POLICIES, OPTIMUM], [capacity], resamples=0)
    hit_rates = {row.policy: row.hit_rate for row in found}
    misses_R = {name: misses_by_request(trace, name, capacity) for name in (BASELINE, *POLICIES)}
    rows = [
        PolicyRow(
            policy=name,
            hit_rate=hit_rates[name],
            ratio=float(misses_R[name].sum() / max(1, misses_R[BASELINE].sum())),
            ratio_ci95=ratio_interval(misses_R[name], misses_R[BASELINE]),
            gap_share=gap_share(hit_rates[name], hit_rates[BASELINE], hit_rates[OPTIMUM]),
        )
        for name in POLICIES
    ]
    return rows, hit_rates[OPTIMUM]


@dataclass(frozen=True)
class _Baseline:
    """What changes are compared with: the baseline's rows at every capacity, on one device."""

    trace: RoutingTrace
    device: DeviceProfile
    rows: Sequence[HitRateRow]
    resident_bytes: int

    def seconds(self, misses: float, missed_bytes: float, share: float = 1.0) -> float:
        """Of a token, with experts of `share` of their bytes."""
        read_bytes = self.resident_bytes + share * self.trace.top_k * sum(self.trace.expert_bytes)
        return self.device.seconds_per_token(read_bytes, self.trace.layers, missed_bytes, misses)

    def quantised(self, name: str, share: float) -> Change | None:
        """Experts of `share` of their bytes, in as many slots as then fit; None where not even K do."""
        slots = self.trace.num_experts
        if self.device.memory_gb is not None:
            room = self.device.memory_gb * GIGA - self.resident_bytes
            slots = min(slots, int(room / (share * sum(self.trace.expert_bytes)) + 1e-9))
        if slots < self.rows[0].capacity:
            return None
        return self._change(name, "computed", row_at(self.rows, slots), 1.0, share)

    def trained(self, where: str, row: HitRateRow, ratio: float) -> Change:
        """So many of the misses."""
        return self._change(f"training, {where}", "assumed", row, ratio, 1.0)

    def rerouted(self, row: HitRateRow, misses_L: np.ndarray) -> Change:
        tokens = _tokens(self.trace)
        misses = misses_L.sum() / tokens
        missed_bytes = float(misses_L @ np.asarray(self.trace.expert_bytes)) / tokens
        curve_C = np.minimum.accumulate(np.array([row.misses for row in self.rows], np.float64))
        capacities_C = np.array([row.capacity for row in self.rows])
        return Change(
            name="re-routing",
            source="replayed",
            capacity=row.capacity,
            misses_per_token=float(misses),
            miss_bytes_per_token=missed_bytes,
            tokens_per_second=1 / self.seconds(misses, missed_bytes),
            worth_capacity=matching_capacity(curve_C, capacities_C, float(misses_L.sum()), row.capacity),
        )

    def _change(self, name: str, source: str, row: HitRateRow, ratio: float, share: float) -> Change:
        misses = ratio * row.misses / _tokens(self.trace)
        missed_bytes = ratio * share * (row.miss_bytes_per_token or 0.0)
        return Change(
            name=name,
            source=source,
            capacity=row.capacity,
            misses_per_token=misses,
            miss_bytes_per_token=missed_bytes,
            tokens_per_second=1 / self.seconds(misses, missed_bytes, share),
            worth_capacity=None,
        )


def _changes(
    baseline: _Baseline, expert_bits: float, budget: PlanRow | None, rerouted: Rerouted | None
) -> list[Change]:
    shares = {name: bits / expert_bits for name, bits in LOW_BITS.items() if bits < expert_bits}
    found = [baseline.quantised(name, share) for name, share in shares.items()]
    changes = [change for change in found if change is not None]
    if budget is None or budget.capacity == baseline.trace.num_experts:
        return changes
    row = row_at(baseline.rows, budget.capacity)
    if rerouted is not None:
        changes.append(baseline.rerouted(row, rerouted(row.capacity)))
    return changes + [baseline.trained(where, row, ratio) for where, ratio in TRAINING.items()]
