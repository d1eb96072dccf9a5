"""Knows what an eviction policy is, and finds one by its name; does not know any of them.

A policy is a NamedTuple of NumPy arrays, one row a cache, in `policies/<name>.py`, exported as `policy`. It
owns only its own state and moves nothing. Its functions are compiled with the cache's step
(`expert_cache/step.py`), so they are plain numba: no Python objects, no exceptions.

    allocate(caches, experts, capacity, *, options)  class method: the arrays; keyword options with defaults;
                                                     after capacity it may ask for `layers`
    lookahead = "none" | "horizon" | "all"              how much of the future it must be told

Then either an order of its own:

    use(self, cache, expert, fresh, now)             `expert` was used; `fresh`: and has just been loaded
    victim(self, cache, guard, now) -> expert        takes out whom to evict; not guard[cache, e] == now.step
    drop(self, cache, expert)                        `expert` was taken away by someone else
    clear(self, cache)                               back to the empty cache
    want(self, cache, expert)                        optional: `expert` is missing, room will be made
    see(self, cache, layer, ids, first, last, now)   optional: ids[first:last] are asked for, before all else

or, with a field `seats` (`expert_cache/learned/order.py`), ratings made anew at each request that evicts:

    watch(self, cache, layer, ids, first, last, now) remember this request, before room is made for it
    rate(self, cache, expert, now) -> float          lowest leaves first, ties by last use
    clear(self, cache)                               optional: forget all

or, with a field `heap` (`expert_cache/heap.py`), a keep-score: lowest leaves first, ties by last use:

    note(self, cache, expert, fresh, now)            remember this use
    score(self, cache, expert, now) -> float         may rise between two uses, never fall
    clear(self, cache)                               optional: forget all uses
    monotone_score = True                                     optional: nor does a use lower it, so a use moves nobody

is_stack_algorithm = True says that the order does not depend on what is resident, so one pass serves all capacities
(`expert_cache/stack.py`); without a score, it is the order of last use. FORGETS = True says that who is
resident depends on the last uses only, so parts of a trace run side by side (`expert_cache/side_by_side.py`).
"""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache import policies
from dwellmoe.cache.kernel import heap
from dwellmoe.cache.kernel.jit import bound
from dwellmoe.cache.learned import order
from dwellmoe.registry import Registry

NEVER = 1 << 62  # next use of an expert that is not used again
TICK_BITS = 20  # a moment is (token step << TICK_BITS) + place within the token step


class AccessTime(NamedTuple):
    """When something happens, as policies are told."""

    seq: int  # number of this access in its cache: recency without ties
    tick: int  # token step
    step: int  # number of this request to the cache; marks the protected experts
    next_use: int  # moment of this expert's next use, NEVER, or meaningless where lookahead is "none"


POLICIES = Registry("policy", policies.__name__, "policy", skip=("base",))


def policy_names() -> list[str]:
    """Every policy there is."""
    return POLICIES.names()


@functools.cache
def parse_policy(spec: str) -> tuple[Any, dict]:
    """`name:option=value,...` -> (policy class, options); UserError lists the choices."""
    return POLICIES.parse(spec, lambda policy: policy.allocate)


def allocate(policy, options: dict, caches: int, experts: int, capacity: np.ndarray, layers: int):
    """The state of `caches` empty caches; `layers` share them, of which only some policies want to know."""
    asks = "layers" in inspect.signature(policy.allocate).parameters
    return policy.allocate(caches, experts, capacity, *([layers] if asks else []), **options)


def functions_of(policy) -> dict:
    """What the cache's step calls, built from the score where the policy only scores."""
    said = {"want": getattr(policy, "want", _nothing_wanted), "see": getattr(policy, "see", _nothing_seen)}
    if hasattr(policy, "victim"):
        return said | {name: getattr(policy, name) for name in ("clear", "use", "victim", "drop")}
    if hasattr(policy, "rate"):
        return said | _rated(policy)
    names = scoring_of(policy)
    using = "use_rising" if getattr(policy, "monotone_score", False) else "use"
    return said | {
        "clear": bound_heap("clear", forget=names["forget"]),
        "use": bound_heap(using, note=names["note"], score=names["score"]),
        "victim": bound_heap("victim", score=names["score"]),
        "drop": heap.drop,
    }


def _rated(policy) -> dict:
    rating = bound(order.rate_all, rate=policy.rate)
    return {
        "see": bound(order.see, watch=policy.watch),
        "clear": bound(order.clear, forget=getattr(policy, "clear", _nothing)),
        "victim": bound(order.victim, rate_all=rating),
        "use": order.use,
        "drop": order.drop,
    }


def scoring_of(policy) -> dict:
    """What a scoring policy says, under the names that `heap.py` and `stack.py` use."""
    return {"note": policy.note, "score": policy.score, "forget": getattr(policy, "clear", _nothing)}


def bound_heap(name: str, **names):
    return bound(getattr(heap, name), **names)


def _nothing(policy, cache): ...
def _nothing_wanted(policy, cache, expert): ...
def _nothing_seen(policy, cache, layer, ids, first, last, now): ...
