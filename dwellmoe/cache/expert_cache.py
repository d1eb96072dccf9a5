"""A live cache of experts: one request of one layer at a time, through the compiled step of the simulator."""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.access import MOST_IDS, Stream, no_layer_ids
from dwellmoe.cache.cache_setup import CHOICES
from dwellmoe.cache.flat_id import flat_id
from dwellmoe.cache.kernel.jit import direct
from dwellmoe.cache.kernel.pinned_arguments import PinnedArguments
from dwellmoe.cache.kernel.step import (
    COMPULSORY,
    DONE,
    EVICTIONS,
    HITS,
    MISSES,
    Log,
    Residency,
    discard_for,
    serve_for,
)
from dwellmoe.cache.policies.base import NEVER, STEP_BITS, Shape, check_live_policy, parse_policy
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError, unknown_name

COUNTED, UNCOUNTED = 0, 1


class ExpertCache:
    """The experts that are resident under a policy and a budget, changed by one request at a time.

    Letters: L layers, E routed experts a layer. Never exceeds its capacity, never evicts an expert of the
    request it serves (access "atomic"), and is deterministic.

        cache = ExpertCache("arc", layers=24, experts=64, capacity=16)
        plan = cache.request(layer=0, experts=[3, 7])  # plan.hits, plan.load, plan.evict

    policy        name with options, e.g. "lrfu:decay=0.95"; `opt` needs the whole trace and is refused,
                  `lopt` needs `next_tokens` at each request
    capacity      experts a layer (scope "layer") or in all (scope "global")
    budget_bytes  instead of capacity, with scope "global"
    expert_bytes  of one expert of each layer, int [L]; needed with `budget_bytes`
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
        check_live_policy(policy, "ExpertCache", allowed=("none", "horizon"))
        found, options = parse_policy(policy)
        limit, size = _limit(layers, experts, capacity, scope, access, budget_bytes, expert_bytes)
        caches = layers if scope == "layer" else 1
        self.spec = policy
        self.layers = layers
        self.experts = experts
        self.scope = scope
        self.access = access
        self.capacity = limit // int(size.max())
        self.needs_future = found.lookahead != "none"
        shape = Shape(caches, len(size), np.full(caches, self.capacity), layers)
        self._policy_class = found
        self._policy = found.allocate(shape, **options)
        self._residency = Residency.allocate(np.full(caches, limit), size, layers, groups=2)
        self._loads, self._evictions = (np.empty(len(size), np.int32) for _ in range(2))
        self._lengths = np.zeros(2, np.int64)
        self._steps = np.zeros(layers, np.int64)
        self._cold = np.ones(caches, np.bool_)
        self._layer_ids = no_layer_ids()
        if hasattr(found, "on_layers"):
            self._layer_ids = np.zeros((2, layers, 1 + MOST_IDS), np.uint16)
        self._allow_width(experts)

    def _allow_width(self, width: int) -> None:
        """Makes room for requests of `width` experts."""
        self._ids = np.empty(width, np.uint32)
        self._next_use = np.empty(width if self.needs_future else 0, np.int64)
        starts, group = np.zeros(2, np.int64), np.zeros(1, np.int32)
        stream = Stream(self._ids, starts, group, self._cold, self._next_use, 1, 0, 0, self._layer_ids)
        sequential = self.access == "sequential"
        log = Log(self._loads, self._evictions, self._lengths, 0)
        self._pinned = PinnedArguments((self._policy, self._residency, stream, self._steps, sequential, log))
        serve = serve_for(self._policy_class, self._pinned.kind)
        self._serve = direct(serve, self._pinned.address, 0, 0, 0)

    def request(self, layer: int, experts, *, counted: bool = True, next_tokens=None) -> TransferPlan:
        """Layer `layer` needs `experts`: ids 0..E-1 in router order, the rows of a batch one after the other.

        `next_tokens`: for a policy with a horizon, how many token steps later each is used again (-1: not
        known). UserError for a request that cannot fit and for an id out of range; nothing has changed then.
        """
        if not 0 <= layer < self.layers:
            raise UserError(f"layer {layer} does not exist: layers go from 0 to {self.layers - 1}")
        requested = len(experts)
        if requested > len(self._ids):
            self._allow_width(requested)
        try:
            self._ids[:requested] = experts
        except OverflowError:
            raise self._impossible(layer, experts) from None
        if self.needs_future:
            self._next_use[:requested] = self._times_of_next_use(layer, next_tokens, requested)
        group = COUNTED if counted else UNCOUNTED
        if self._serve(self._pinned.address, layer, requested, group) != DONE:
            raise self._impossible(layer, experts)
        loads, evictions = self._lengths.tolist()
        load = self._loads[:loads].tolist() if loads else ()
        evict = self._evictions[:evictions].tolist() if evictions else ()
        return tuple.__new__(TransferPlan, (requested - loads, load, evict, (), (), ()))  # saves 0.1 us

    def remove(self, layer: int, expert: int) -> bool:
        """Evicts one expert, because it moved elsewhere or could not be read; whether it was resident."""
        cache, first = self._first_of(layer)
        if self._cold[cache]:
            return False
        return bool(discard_for(self._policy_class)(self._policy, self._residency, cache, first + expert))

    def reset(self) -> None:
        """Back to a cold cache; the counts go on."""
        self._cold[:] = True

    def resident(self, layer: int) -> np.ndarray:
        """bool [E]: which experts of `layer` are resident."""
        cache, first = self._first_of(layer)
        if self._cold[cache]:
            return np.zeros(self.experts, np.bool_)
        return self._residency.resident[cache, first : first + self.experts].copy()

    def counts(self, layer: int | None = None) -> dict[str, int]:
        """Hits, misses, compulsory misses and evictions of the counted requests, of one layer or of all."""
        counted = self._residency.counts[:, COUNTED]
        total = counted.sum(axis=0) if layer is None else counted[layer]
        kinds = {"hits": HITS, "misses": MISSES, "compulsory_misses": COMPULSORY, "evictions": EVICTIONS}
        return {name: int(total[kind]) for name, kind in kinds.items()}

    def _first_of(self, layer: int) -> tuple[int, int]:
        """(the cache of a layer, the id of the layer's first expert in it)"""
        return (layer, 0) if self.scope == "layer" else (0, flat_id(layer, 0, self.experts))

    def _times_of_next_use(self, layer: int, next_tokens, requested: int) -> np.ndarray:
        if next_tokens is None or len(next_tokens) != requested:
            raise UserError(
                f"policy '{self.spec}' looks ahead: give next_tokens, one for each of {requested} experts"
            )
        ahead = np.asarray(next_tokens, np.int64)
        return np.where(ahead < 0, NEVER, (self._steps[layer] + ahead) << STEP_BITS)

    def _impossible(self, layer: int, experts) -> UserError:
        bad = [int(expert) for expert in experts if not 0 <= expert < self.experts]
        if bad:
            return UserError(
                f"layer {layer}: expert {bad[0]} does not exist: ids go from 0 to {self.experts - 1}"
            )
        return UserError(
            f"layer {layer} requests {len(set(map(int, experts)))} experts at once: more than the cache holds"
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
