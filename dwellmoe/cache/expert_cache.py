"""Knows how a live engine asks the cache, one layer's request at a time; moves no weights and decides nothing
itself.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.cache_setup import CHOICES
from dwellmoe.cache.kernel.jit import direct
from dwellmoe.cache.kernel.pinned_arguments import PinnedArguments
from dwellmoe.cache.kernel.step import (
    COMPULSORY,
    DONE,
    EVICTIONS,
    HITS,
    MISSES,
    USED,
    Log,
    Residency,
    discard_for,
    serve_for,
)
from dwellmoe.cache.policies.base import NEVER, STEP_BITS, Shape, parse_policy
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError, unknown_name

COUNTED, UNCOUNTED = 0, 1


class ExpertCache:
    """Residency of experts under a policy and a budget: the compiled step of the simulator, one request at a
    time.

    Letters: L layers, E routed experts a layer. Never exceeds its capacity, never evicts an expert of the
    request it serves (access "atomic"), and does the same again for the same requests.

    policy        name with options, e.g. "lrfu:decay=0.95"; `opt` needs the whole trace and is refused,
                  `lopt` needs `next_tokens` at each step
    capacity      experts a layer (scope "layer") or in all (scope "global")
    budget_bytes  instead of capacity, with scope "global"
    expert_bytes  of one expert a layer, int [L]; needed with `budget_bytes`
    """

    def __init__(
        self,
        policy: str,
        *,
        layers: int,
        experts: int,
        capacity: int | None = None,
        scope: str = "layer",
        access: str = "atomic",
        budget_bytes: int | None = None,
        expert_bytes: Sequence[int] | None = None,
    ) -> None:
        found, options = parse_policy(policy)
        if found.lookahead == "all":
            raise UserError(f"policy '{policy}' needs the whole trace: it can be simulated, not run live")
        limit, size = _limit(layers, experts, capacity, scope, access, budget_bytes, expert_bytes)
        caches = layers if scope == "layer" else 1
        self.spec, self.layers, self.experts, self.scope, self.access = policy, layers, experts, scope, access
        self.capacity = limit // int(size.max())
        self.needs_future = found.lookahead != "none"
        self._sequential = access == "sequential"
        self._residency = Residency.allocate(np.full(caches, limit), size, layers, groups=2)
        slots = np.full(caches, self.capacity)
        self._policy = found.allocate(Shape(caches, len(size), slots, layers), **options)
        self._kind = found
        self._loads, self._evictions = np.empty(len(size), np.int32), np.empty(len(size), np.int32)
        self._lengths = np.zeros(2, np.int64)
        self._ticks, self._cold = np.zeros(layers, np.int64), np.ones(caches, np.bool_)
        self._make_room(experts)

    def _make_room(self, asked: int) -> None:
        """For requests of so many experts."""
        self._ids = np.empty(asked, np.uint32)
        self._next_use = np.empty(asked if self.needs_future else 0, np.int64)
        starts, group = np.zeros(2, np.int64), np.zeros(1, np.int32)
        stream = Stream(self._ids, starts, group, self._cold, self._next_use, 1, 0, 0)
        log = Log(self._loads, self._evictions, self._lengths, 0)
        self._held = PinnedArguments(
            (self._policy, self._residency, stream, self._ticks, self._sequential, log)
        )
        self._serve = direct(serve_for(self._kind, self._held.kind), self._held.address, 0, 0, 0)

    def request(self, layer: int, experts, *, counted: bool = True, next_tokens=None) -> TransferPlan:
        """Layer `layer` asks for `experts` (ids 0..E-1 in router order; the rows of a batch one after the
        other).

        `next_tokens`: for a policy with limited sight, how many token steps later each is used again (-1: not
        in sight). UserError when the request cannot fit or an id is out of range; nothing has changed then.
        """
        if not 0 <= layer < self.layers:
            raise UserError(f"layer {layer} does not exist: layers go from 0 to {self.layers - 1}")
        asked = len(experts)
        if asked > len(self._ids):
            self._make_room(asked)
        try:
            self._ids[:asked] = experts
        except OverflowError:
            raise self._cannot_serve(layer, experts) from None
        if self.needs_future:
            self._next_use[:asked] = self._moments(layer, next_tokens, asked)
        group = COUNTED if counted else UNCOUNTED
        if self._serve(self._held.address, layer, asked, group) != DONE:
            raise self._cannot_serve(layer, experts)
        loads, evictions = self._lengths.tolist()
        return TransferPlan(
            asked - loads,
            self._loads[:loads].tolist() if loads else (),
            self._evictions[:evictions].tolist() if evictions else (),
        )

    def remove(self, layer: int, expert: int) -> bool:
        """Evicts one expert, because it moved elsewhere or could not be read; whether it was resident."""
        lane, first = self._place(layer)
        if self._cold[lane]:
            return False
        return bool(discard_for(self._kind)(self._policy, self._residency, lane, first + expert))

    def reset(self) -> None:
        """Back to a cold cache; the counts go on."""
        self._cold[:] = True

    def resident(self, layer: int) -> np.ndarray:
        """bool [E]: who of `layer` is resident."""
        lane, first = self._place(layer)
        if self._cold[lane]:
            return np.zeros(self.experts, np.bool_)
        return self._residency.resident[lane, first : first + self.experts].copy()

    def used(self) -> int:
        """Slots (or, with `budget_bytes`, bytes) taken in all layers together."""
        used = self._residency.totals[:, USED]
        return sum(int(taken) for taken, cold in zip(used, self._cold, strict=True) if not cold)

    def counts(self, layer: int | None = None) -> dict[str, int]:
        """Hits, misses, compulsory misses and evictions of the counted steps, of one layer or of all."""
        counted = self._residency.counts[:, COUNTED]
        total = counted.sum(axis=0) if layer is None else counted[layer]
        kinds = {"hits": HITS, "misses": MISSES, "compulsory_misses": COMPULSORY, "evictions": EVICTIONS}
        return {name: int(total[kind]) for name, kind in kinds.items()}

    def _place(self, layer: int) -> tuple[int, int]:
        """(the cache of a layer, the number of the layer's first expert in it)"""
        return (layer, 0) if self.scope == "layer" else (0, layer * self.experts)

    def _moments(self, layer: int, next_tokens, asked: int) -> np.ndarray:
        if next_tokens is None or len(next_tokens) != asked:
            raise UserError(
                f"policy '{self.spec}' looks ahead: give next_tokens, one number for each of {asked} experts"
            )
        ahead = np.asarray(next_tokens, np.int64)
        return np.where(ahead < 0, NEVER, (self._ticks[layer] + ahead) << STEP_BITS)

    def _cannot_serve(self, layer: int, experts) -> UserError:
        bad = [int(expert) for expert in experts if not 0 <= expert < self.experts]
        if bad:
            return UserError(
                f"layer {layer}: expert {bad[0]} does not exist: ids go from 0 to {self.experts - 1}"
            )
        return UserError(
            f"layer {layer} asks for {len(set(map(int, experts)))} experts at once: more than the cache holds"
        )


def _limit(layers, experts, capacity, scope, access, budget_bytes, expert_bytes) -> tuple[int, np.ndarray]:
    """(limit, size of each expert) of a cache, in slots or bytes."""
    for field, value in (("scope", scope), ("access", access)):
        if value not in CHOICES[field]:
            raise unknown_name(field, value, CHOICES[field])
    if (capacity is None) == (budget_bytes is None):
        raise UserError("give either capacity or budget_bytes")
    most = experts if scope == "layer" else layers * experts
    if capacity is not None:
        if not 1 <= capacity <= most:
            raise UserError(f"capacity must be 1 to {most} experts with scope {scope}, got {capacity}")
        return capacity, np.ones(most, np.int64)
    if scope != "global" or expert_bytes is None or len(expert_bytes) != layers or min(expert_bytes) <= 0:
        raise UserError(
            f"budget_bytes needs scope 'global' and expert_bytes, a size for each of {layers} layers"
        )
    return int(budget_bytes or 0), np.repeat(np.asarray(expert_bytes, np.int64), experts)
