"""A slow and obvious cache, written from the definitions alone: what the compiled one must equal."""

from fractions import Fraction
from math import inf

EMPTY = 65535


def requests_of(trace, phases=(1,)):
    """[(step, phase, request, [experts of layer 0, of layer 1, ...])]; a prefill chunk is one entry."""
    passes = []
    last = None
    for row in range(trace.steps):
        phase, request = int(trace.phase[row]), int(trace.request[row])
        chunk = None if trace.chunk is None else int(trace.chunk[row])
        batch = None if trace.batch_step is None else int(trace.batch_step[row])
        alone = (request, chunk) if phase == 0 else row
        key = (phase, alone if batch is None else ("batch", batch))
        sets = [[int(e) for e in layer if e != EMPTY] for layer in trace.experts[row]]
        if key == last:
            for merged, more in zip(passes[-1][2], sets, strict=True):
                merged.extend(e for e in more if phase == 1 or e not in merged)
        else:
            passes.append((phase, request, sets))
        last = key
    kept = [entry for entry in passes if entry[0] in phases]
    return [(step, *entry) for step, entry in enumerate(kept)]


def flatten(passes, scope, layers, experts, reset):
    """For each cache: [(step, layer, emptied first?, [ids])]."""
    caches = [[] for _ in range(layers)] if scope == "layer" else [[]]
    previous = None
    for step, _, request, sets in passes:
        emptied = previous is None or (reset == "request" and request != previous)
        previous = request
        for layer, ids in enumerate(sets):
            if scope == "layer":
                caches[layer].append((step, layer, emptied, ids))
            else:
                caches[0].append((step, layer, emptied and layer == 0, [layer * experts + e for e in ids]))
    return caches


class ReferenceCache:
    """One cache, one policy. `run` returns (hits, misses, compulsory, loads in order, evictions in order)."""

    def __init__(self, policy, capacity, sizes=None, decay=0.95, horizon=inf, counted=None):
        self.policy, self.capacity, self.sizes, self.counted = policy, capacity, sizes, counted
        self.decay, self.horizon = decay, horizon
        self.clear()

    def clear(self):
        self.resident, self.used, self.loaded, self.uses, self.counter = set(), {}, {}, {}, {}
        self.all_uses, self.last_request, self.request, self.loaded_by, self.used_at = {}, {}, 0, {}, {}
        self.touched = set()

    def run(self, requests, access="atomic"):
        self.plan = self._uses(requests, access)
        totals = [0, 0, 0]
        loads, evictions, self.clock = [], [], 0
        for index, (step, _, emptied, ids) in enumerate(requests):
            if emptied:
                self.clear()
            self.request += 1
            groups = [ids] if access == "atomic" else [[e] for e in ids]
            for position, requested in enumerate(groups):
                when = (index, position)
                self._request(requested, step, when, totals, loads, evictions)
                assert self._size(self.resident) <= self.capacity
        return (*totals, loads, evictions)

    def _size(self, experts):
        return sum(1 if self.sizes is None else self.sizes[e] for e in experts)

    def _request(self, requested, step, when, totals, loads, evictions):
        distinct = list(dict.fromkeys(requested))
        missing = [e for e in distinct if e not in self.resident]
        totals[0] += len(requested) - len(missing)
        totals[1] += len(missing)
        totals[2] += sum(e not in self.touched for e in missing)
        self.touched.update(missing)
        if self.policy == "lrfu" and step != getattr(self, "faded_at", step):
            self._fade(step)
        self.faded_at = step
        while self._size(self.resident) + self._size(missing) > self.capacity:
            victim = min(
                (e for e in self.resident if e not in requested), key=lambda e: self._keep(e, step, when)
            )
            self.resident.remove(victim)
            evictions.append(victim)
        loads.extend(missing)
        for e in requested:
            self.clock += 1
            self.used[e] = self.clock
            self.counter[e] = self.counter.get(e, 0) + 1
            self.all_uses[e] = self.all_uses.get(e, 0) + 1
            self.last_request[e] = self.request
            self.used_at[e] = step
            self.uses[e] = self.uses[e] + 1 if e in self.resident else 1
            if e not in self.resident:
                self.loaded[e] = self.clock
                self.loaded_by[e] = self.request
            self.resident.add(e)

    def _fade(self, step):
        for e in self.counter:
            self.counter[e] *= self.decay ** (step - self.faded_at)

    def _keep(self, e, step, when):
        """(keep-score, tie-break): the smallest leaves."""
        if self.policy == "opt_forced":
            return self.loaded_by[e] == self.request, *self._next_use(e, step, when)
        if self.policy == "least_stale":
            return self.used_at[e] == step, self.used[e]
        if self.policy == "lru":
            return (self.used[e],)
        if self.policy == "lfru":
            return Fraction(self.all_uses[e], self.request - self.last_request[e] + 1), self.used[e]
        if self.policy == "static":
            return self.counted[e], self.used[e]
        if self.policy == "lfu":
            return self.uses[e], self.used[e]
        if self.policy == "fifo":
            return (self.loaded[e],)
        if self.policy == "lifo":
            return (-self.loaded[e],)
        if self.policy == "lrfu":
            return round(self.counter[e], 12), self.used[e]
        return self._next_use(e, step, when)

    def _next_use(self, e, step, when):
        following = next(((use, at) for use, at in self.plan.get(e, []) if use > when), None)
        if following is None or self.horizon == 0 or following[1] - step > self.horizon:
            return (-inf,), self.used[e]
        return tuple(-x for x in following[0]), self.used[e]

    def _uses(self, requests, access):
        """expert -> [((request index, position), step)]; a use after a reset is unknown."""
        plan = {}
        for index, (step, _, _, ids) in enumerate(requests):
            for position, e in enumerate(ids):
                plan.setdefault(e, []).append(((index, 0 if access == "atomic" else position), step))
        return plan


def reference_counts(
    trace, policy, capacity, *, scope="layer", access="atomic", phases=(1,), reset="never", **options
):
    """(hits, misses, compulsory) of a whole trace."""
    caches = flatten(requests_of(trace, phases), scope, trace.layers, trace.num_experts, reset)
    runs = [ReferenceCache(policy, capacity, **options).run(requests, access)[:3] for requests in caches]
    return tuple(map(sum, zip(*runs, strict=True)))
