"""Knows how re-routing is set up for a loaded model, by a virtual cache or by its engine; does not run it."""

from dataclasses import dataclass
from typing import Any

from dwellmoe.cache.budget import Budget, ModelSizes, budget_of
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.tiers.prefill_decode import parse_prefill_handoff
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.offload import LiveRerouting, engine_of
from dwellmoe.routing import SimulatedCache
from dwellmoe.routing.strategies import load_strategy

NONE = "none"


@dataclass(frozen=True)
class ReroutingSettings:
    """A routing strategy, and the cache by whose residents it routes: simulated, or that of an engine."""

    strategy: str
    budget: str
    policy: str
    prefill_handoff: str
    reroute_prefill: bool = False

    def check(self) -> None:
        """Everything that can be wrong before a model is loaded. Raises UserError."""
        load_strategy(self.strategy)
        parse_prefill_handoff(self.prefill_handoff)
        if parse_policy(self.policy)[0].lookahead != "none":
            raise UserError(f"--decode_policy {self.policy} looks into the future: it cannot run live")

    def room(self, evaluated: EvaluatedModel) -> Budget:
        """The decode cache's room. UserError for a budget that does not hold one token's experts."""
        if engine := engine_of(evaluated.model):
            return engine.budget
        first = evaluated.moe_layers[0]
        sizes = ModelSizes(len(evaluated.moe_layers), first.num_experts, evaluated.expert_bytes)
        budget = budget_of(sizes, "layer", self.budget)
        if budget.capacity < first.top_k:
            raise UserError(
                f"--expert_budget {self.budget} leaves {budget.capacity} slots a layer: a token needs "
                f"{first.top_k} of {first.num_experts} experts"
            )
        return budget

    def cache(self, evaluated: EvaluatedModel) -> SimulatedCache | LiveRerouting:
        """An empty cache on the model as it is now; or its engine's, as full as that is."""
        if engine := engine_of(evaluated.model):
            routed = evaluated.model, evaluated.moe_layers, engine, self.strategy
            return LiveRerouting(*routed, reroute_prefill=self.reroute_prefill)
        return SimulatedCache(
            evaluated.model,
            evaluated.moe_layers,
            self.strategy,
            policy=self.policy,
            capacity=self.room(evaluated).capacity,
            prefill_handoff=self.prefill_handoff,
            reroute_prefill=self.reroute_prefill,
        )

    def fields(self, evaluated: EvaluatedModel) -> dict[str, Any]:
        """The convention of what the cache counts."""
        counted = {"scope": "layer", "access": "atomic", "phase": "decode", "start": "warm:prefill"}
        cache = {"policy": self.policy, "prefill_handoff": self.prefill_handoff, "reset": "never"}
        cache["residency"] = "engine" if engine_of(evaluated.model) else "simulated"
        return counted | cache | self.room(evaluated).fields() | {"reroute_prefill": self.reroute_prefill}
