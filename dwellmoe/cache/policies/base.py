"""What an eviction policy is, and how one is found by its name.

A policy is a NamedTuple of NumPy arrays, one row a cache, in `policies/<name>.py`, exported as `policy`, or
registered from a user's file. It owns only its own state and moves nothing. `Hooks` is its contract.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dwellmoe.cache import policies
from dwellmoe.cache.kernel import heap
from dwellmoe.cache.kernel.jit import bound
from dwellmoe.cache.learned import order
from dwellmoe.errors import UserError
from dwellmoe.registry import Registry

NEVER = 1 << 62  # next use of an expert that is not used again
STEP_BITS = 20  # a time of use is (token step << STEP_BITS) + index within the token step


class AccessTime(NamedTuple):
    """When an access happens."""

    access: int  # number of this access to its cache: recency without ties
    step: int  # token step
    request: int  # number of this request to its cache; negative where no expert is protected
    next_use: int  # time of this expert's next use, or NEVER; meaningless where `lookahead` is "none"


class Shape(NamedTuple):
    """What a policy allocates its state for."""

    caches: int
    experts: int  # of all layers that one cache serves
    capacity: np.ndarray  # int64 [caches]: experts that each cache holds
    layers: int  # of the model: as many as caches, or all of them share one cache

    @property
    def per_expert(self) -> tuple[int, int]:
        """The shape of an array with an entry for each expert of each cache."""
        return self.caches, self.experts

    @property
    def experts_per_layer(self) -> int:
        return self.caches * self.experts // self.layers


class Hooks(Protocol):
    """All hooks of eviction policies; each policy has those of its kind.

    There are three kinds. A policy with an *own order* has `evict`. A *keep-score* policy has a field `heap`
    (`kernel/heap.py`), which evicts the lowest score. A *ranking* policy has a field `resident_order`
    (`learned/order.py`), which scores all residents anew at each request that evicts. Ties leave by last use.

    | hook         | called                                            | own order | keep-score | ranking  |
    |--------------|---------------------------------------------------|-----------|------------|----------|
    | `allocate`   | once: the state of empty caches                   | needed    | needed     | needed   |
    | `reset`      | a cache is emptied, also before its first request | needed    | optional   | optional |
    | `on_layers`  | a request begins: what other layers requested     | optional  | optional   | optional |
    | `on_request` | a request begins: `ids[first:last]` of `layer`    | optional  | optional   |          |
    | `observe`    | likewise, before experts are scored for it        |           |            | needed   |
    | `on_miss`    | `expert` is missing, room will be made            | optional  | optional   | optional |
    | `evict`      | room is needed: take an expert out of the order   | needed    |            |          |
    | `on_access`  | `expert` is used; `inserted`: was just loaded     | needed    |            |          |
    | `record`     | likewise, before the expert is scored             |           | needed     |          |
    | `score`      | the order is needed; the lowest leaves first      |           | needed     | needed   |
    | `remove`     | `expert` leaves, but not by the policy's choice   | needed    |            |          |

    In one request: `on_layers`; `on_request` or `observe`; `on_miss` for each missing expert; `evict` until
    all fit; `on_access` or `record` for each expert. With sequential access the last three take one expert at
    a time.

    The options of `allocate` are keywords with defaults. All other hooks are compiled with the cache's step
    (`kernel/step.py`), so they are plain numba: no Python objects, no exceptions, no allocation. A keep-score
    may rise between two uses of an expert and never falls. `evict` never takes an expert whose
    `protected[cache, expert]` is `now.request`.
    """

    lookahead: str
    """How much of the future is needed: "none", "horizon" (the next uses within some steps) or "all"."""

    monotone_score: bool
    """Optional, of a keep-score policy: no use lowers a score, so a use moves no expert in the heap."""

    is_stack_algorithm: bool
    """Optional: the order does not depend on what is resident, so one pass gives the hits of all capacities
    (`replay/stack.py`). The order is that of `record` and `score` or, without them, that of last use.
    """

    @classmethod
    def allocate(cls, shape: Shape) -> "Hooks": ...

    def reset(self, cache: int) -> None: ...

    def on_layers(self, cache: int, layer: int, layer_ids: np.ndarray, running: int) -> None:
        """`layer_ids` [passes, layers, ...] as in `access.Stream`: of the running pass, `layer_ids[running]`,
        only the layers before `layer` may be looked at; `layer_ids[running - 1]` is the pass before it.
        """

    def on_request(
        self, cache: int, layer: int, ids: np.ndarray, first: int, last: int, now: AccessTime
    ) -> None: ...

    def observe(
        self, cache: int, layer: int, ids: np.ndarray, first: int, last: int, now: AccessTime
    ) -> None: ...

    def on_miss(self, cache: int, expert: int) -> None: ...

    def evict(self, cache: int, protected: np.ndarray, now: AccessTime) -> int: ...

    def on_access(self, cache: int, expert: int, inserted: bool, now: AccessTime) -> None: ...

    def record(self, cache: int, expert: int, inserted: bool, now: AccessTime) -> None: ...

    def score(self, cache: int, expert: int, now: AccessTime) -> float: ...

    def remove(self, cache: int, expert: int) -> None: ...


POLICIES = Registry("policy", policies.__name__, "policy", skip=("base",))
LOOKAHEADS = ("none", "horizon", "all")
OWN_ORDER = ("reset", "evict", "on_access", "remove")
KEEP_SCORE = ("record", "score")
RANKING = ("observe", "score")


def policy_names() -> list[str]:
    """Every policy there is."""
    return POLICIES.names()


@functools.cache  # of what succeeded: a name that is not known yet may be registered later, but none changes
def parse_policy(spec: str) -> tuple[Any, dict]:
    """`name:option=value,...` -> (policy class, options); UserError lists the choices."""
    policy, options = POLICIES.parse(spec, lambda policy: policy.allocate)
    if getattr(policy, "lookahead", None) not in LOOKAHEADS:
        raise UserError(f"policy '{spec}': `lookahead` must be one of {', '.join(LOOKAHEADS)}")
    missing = [name for name in _needed(policy) if not hasattr(policy, name)]
    if missing:
        raise UserError(f"policy '{spec}': {policy.__name__} has no hook {', '.join(missing)}")
    return policy, options


def check_live_policy(spec: str, where: str, allowed: Sequence[str] = ("none",)) -> None:
    """UserError, which begins with `where` it was given, for a policy that needs to know more of the future
    than the `LOOKAHEADS` that are allowed.
    """
    if parse_policy(spec)[0].lookahead not in allowed:
        raise UserError(
            f"{where}: policy '{spec}' looks into the future: it can be simulated, but cannot run live"
        )


def _needed(policy) -> tuple[str, ...]:
    if hasattr(policy, "heap"):
        return OWN_ORDER if hasattr(policy, "evict") else KEEP_SCORE
    return RANKING if hasattr(policy, "resident_order") else OWN_ORDER


def hooks_of(policy) -> dict[str, Callable]:
    """The six hooks that the cache's step calls, made from the score where the policy only scores."""
    optional = {
        "on_layers": getattr(policy, "on_layers", _on_layers_nothing),
        "on_request": getattr(policy, "on_request", _on_request_nothing),
        "on_miss": getattr(policy, "on_miss", _on_miss_nothing),
    }
    if hasattr(policy, "evict"):
        return optional | {name: getattr(policy, name) for name in OWN_ORDER}
    return optional | (_ranking(policy) if hasattr(policy, "resident_order") else _keep_score(policy))


def _keep_score(policy) -> dict[str, Callable]:
    score, record = policy.score, policy.record
    monotone = getattr(policy, "monotone_score", False)
    on_access = heap.on_access_monotone if monotone else heap.on_access
    return {
        "reset": bound(heap.reset, reset_score=reset_of(policy)),
        "evict": bound(heap.evict, score=score),
        "on_access": bound(on_access, record=record, score=score),
        "remove": heap.remove,
    }


def _ranking(policy) -> dict[str, Callable]:
    return {
        "on_request": bound(order.on_request, observe=policy.observe),
        "reset": bound(order.reset, reset_score=reset_of(policy)),
        "evict": bound(order.evict, score_all=bound(order.score_all, score=policy.score)),
        "on_access": order.on_access,
        "remove": order.remove,
    }


def reset_of(policy) -> Callable:
    """The policy's own `reset`, or one that does nothing."""
    return getattr(policy, "reset", _reset_nothing)


def _reset_nothing(policy, cache): ...
def _on_miss_nothing(policy, cache, expert): ...
def _on_layers_nothing(policy, cache, layer, layer_ids, running): ...
def _on_request_nothing(policy, cache, layer, ids, first, last, now): ...
