"""Knows how re-routing is set up for a loaded model, by a virtual cache or by its engine; does not run it."""

from dataclasses import dataclass
from typing import Any

from dwellmoe.cache.budget import Budget, ModelSizes, budget_of
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.tiers.prefill_decode import parse_hand_over
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import Subject
from dwellmoe.offload import LiveRerouting, engine_of
from dwellmoe.routing import VirtualCache
from dwellmoe.routing.strategies import load_strategy

NONE = "none"


@dataclass(frozen=True)
class VirtualSetup:
    """A routing strategy, and the cache by whose residents it routes: simulated, or that of an engine."""

    strategy: str
    budget: str
    policy: str
    hand_over: str
    reroute_prefill: bool = False

    def check(self) -> None:
        """Everything that can be wrong before a model is loaded. Raises UserError."""
        load_strategy(self.strategy)
        parse_hand_over(self.hand_over)
        if parse_policy(self.policy)[0].FUTURE != "none":
            raise UserError(f"--decode_policy {self.policy} looks into the future: it cannot run live")

    def room(self, subject: Subject) -> Budget:
        """The decode cache's room. UserError for a budget that does not hold one token's experts."""
        if engine := engine_of(subject.model):
            return engine.budget
        first = subject.moe_layers[0]
        sizes = ModelSizes(len(subject.moe_layers), first.num_experts, subject.expert_bytes)
        budget = budget_of(sizes, "layer", self.budget)
        if budget.capacity < first.top_k:
            raise UserError(
                f"--expert_budget {self.budget} leaves {budget.capacity} slots a layer: a token needs "
                f"{first.top_k} of {first.num_experts} experts"
            )
        return budget

    def cache(self, subject: Subject) -> VirtualCache | LiveRerouting:
        """An empty cache on the model as it is now; or its engine's, as full as that is."""
        if engine := engine_of(subject.model):
            routed = subject.model, subject.moe_layers, engine, self.strategy
            return LiveRerouting(*routed, reroute_prefill=self.reroute_prefill)
        return VirtualCache(
            subject.model,
            subject.moe_layers,
            self.strategy,
            policy=self.policy,
            capacity=self.room(subject).capacity,
            hand_over=self.hand_over,
            reroute_prefill=self.reroute_prefill,
        )

    def fields(self, subject: Subject) -> dict[str, Any]:
        """The convention of what the cache counts."""
        counted = {"scope": "layer", "access": "atomic", "phase": "decode", "start": "warm:prefill"}
        cache = {"policy": self.policy, "hand_over": self.hand_over, "reset": "never"}
        cache["residency"] = "engine" if engine_of(subject.model) else "simulated"
        return counted | cache | self.room(subject).fields() | {"reroute_prefill": self.reroute_prefill}
