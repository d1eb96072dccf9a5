"""How choices of experts are re-routed in an evaluation, and the text written under it. Without torch."""

from dataclasses import dataclass

from dwellmoe.cache.budget import check_capacity
from dwellmoe.cache.policies.base import check_live_policy
from dwellmoe.cache.tiers.prefill_decode import parse_prefill_handoff
from dwellmoe.offload.check_settings import naming
from dwellmoe.routing.strategies import load_strategy

NO_REROUTING = "none"
"""The routing strategy that keeps the router's own choice."""


@dataclass(frozen=True)
class ReroutingSettings:
    """A routing strategy, and the cache whose resident experts it prefers: simulated, or an engine's."""

    strategy: str
    budget: str
    policy: str
    prefill_handoff: str
    reroute_prefill: bool = False

    def check(self) -> None:
        """Finds every mistake that can be found before a model is loaded. Raises UserError."""
        load_strategy(self.strategy)
        parse_prefill_handoff(self.prefill_handoff)
        check_live_policy(self.policy, f"--decode_policy {self.policy}")
        with naming("expert_budget", self.budget):
            check_capacity(self.budget)


@dataclass(frozen=True)
class FreeRunning:
    """How much text a re-routed model writes after each prompt, and how its tokens are drawn."""

    tokens: int
    """At most so many; an end token ends a text."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    seed: int = 0
