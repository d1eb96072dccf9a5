"""Reads and checks the options of training under re-routing. Without torch."""

from dwellmoe.cache.budget import check_capacity
from dwellmoe.cache.policies.base import check_live_policy
from dwellmoe.errors import UserError
from dwellmoe.routing.strategies import load_strategy


def parse_cache(text: str) -> tuple[str, str]:
    """`POLICY@CAPACITY` -> (policy, capacity). Raises UserError."""
    policy, _, capacity = text.rpartition("@")
    if not policy:
        raise UserError(f"--train_rerouting_cache {text}: expected POLICY@CAPACITY, e.g. lru@25%")
    check_live_policy(policy, f"--train_rerouting_cache {text}")
    check_capacity(capacity)
    return policy, capacity


def check_rerouting(strategy: str, cache: str) -> None:
    """Everything that can be wrong before a model is loaded. Raises UserError."""
    load_strategy(strategy)
    parse_cache(cache)
