"""A cache for prefill and decode, in which long prompts do not push out the experts that decoding uses.

A prompt needs most experts of a layer, once. So its experts pass through a small buffer instead of the decode
cache, and a hand-off rule decides which of them stay for decoding. Letters: T tokens, K chosen, E experts a
layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache.budget import Sizes
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.flat_id import FlatId
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError, unknown_name

SHARED, NONE, RECENT, LRFU, POOL = "shared", "none", "recent", "lrfu", "pool"
DEFAULTS = {SHARED: 0.0, NONE: 0.0, RECENT: 8.0, LRFU: 0.95, POOL: 0.0}
OPTIONS = {RECENT: "tokens", LRFU: "decay"}


class ChunkPlan(NamedTuple):
    """What one layer of a prefill chunk found and moves; experts are named by flat id."""

    hits: int
    """Distinct experts of the chunk that were on the device."""
    load: Sequence[FlatId]
    """Come to the device, each once a chunk, in order of first use."""
    kept: Sequence[FlatId]
    """Of the chunk's experts, those in the decode cache afterwards."""
    decode: TransferPlan
    """What the decode cache moves, when the layer's chunk is done."""
    released: Sequence[FlatId] = ()
    """Leave the prefill cache, some only once they were used."""


class PrefillDecodeCache:
    """Looks like one cache: `prefill` takes the rows of a chunk, `request` the experts of a decoded token.

    decode_cache     an `ExpertCache` with scope "layer", or a `WatermarkDevice`
    prefill_handoff  "shared": prefill goes through the decode cache as well, a cacheful at a time
                     "none": prefill only passes through, the decode cache keeps what it had
                     "recent:tokens=8": after each chunk the decode cache holds the experts that the last 8
                     prompt tokens used most
                     "lrfu:decay=0.95": after each chunk it holds the best of old and new by a decaying count
                     "pool": it starts decoding with the experts that the whole prompt used most
    prefill_cache    keeps experts of prefill under a policy of its own: one cache for all layers (scope
                     "global", access "sequential"); what decoding requests moves over to the decode cache.
                     None: each expert leaves once it is used
    """

    def __init__(
        self,
        decode_cache: Any,
        prefill_handoff: str = "recent:tokens=8",
        prefill_cache: ExpertCache | None = None,
    ) -> None:
        if decode_cache.scope != "layer":
            raise UserError("PrefillDecodeCache needs a decode cache with scope 'layer'")
        if prefill_cache and (prefill_cache.scope, prefill_cache.access) != ("global", "sequential"):
            raise UserError(
                "PrefillDecodeCache needs a prefill cache with scope 'global' and access 'sequential'"
            )
        self.decode_cache = decode_cache
        self.prefill_handoff = prefill_handoff
        self.prefill_cache = prefill_cache
        self.rule, self.amount = parse_prefill_handoff(prefill_handoff)
        self.experts = decode_cache.experts
        self._score_LE = np.zeros((decode_cache.layers, self.experts))
        self._prompts: list[_LastTokens | _WholePrompt | None] = [None] * decode_cache.layers

    def reset(self) -> None:
        """Back to cold caches, and to no memory of prompts."""
        self.decode_cache.reset()
        if self.prefill_cache:
            self.prefill_cache.reset()
        self._score_LE[:] = 0
        self._prompts = [None] * self.decode_cache.layers

    def request(self, layer: int, experts) -> TransferPlan:
        """The experts of one decoded token, as `ExpertCache.request`."""
        if self.rule == LRFU:
            self._decay(layer, np.asarray(experts)[None])
        self._prompts[layer] = None
        plan = self.decode_cache.request(layer, experts)
        if self.prefill_cache:
            for loaded in plan.load:
                self.prefill_cache.remove(layer, loaded - layer * self.experts)
        return plan

    def prefill(self, layer: int, experts_TK) -> ChunkPlan:
        """One layer of a chunk: the experts of each of its tokens, in order; ids >= E are empty slots."""
        rows_TK = np.asarray(experts_TK, np.int64)
        requested = _distinct(rows_TK[rows_TK < self.experts])
        if self.rule == SHARED:
            return self._through_decode_cache(layer, requested)
        resident_E = self.decode_cache.resident(layer)
        buffered = self._through_buffer(layer, requested[~resident_E[requested]])
        moved = TransferPlan()
        if self.rule != NONE:
            stay = self._choose(layer, rows_TK, np.union1d(requested, np.flatnonzero(resident_E)))
            moved = self.decode_cache.request(layer, stay, counted=False)
        kept = requested[self.decode_cache.resident(layer)[requested]]
        if self.prefill_cache:
            for expert in kept[~resident_E[kept]].tolist():
                self.prefill_cache.remove(layer, expert)
        return ChunkPlan(
            hits=len(requested) - len(buffered.load),
            load=buffered.load,
            kept=(kept + layer * self.experts).tolist(),
            decode=moved,
            released=buffered.evict,
        )

    def _through_buffer(self, layer: int, missing: np.ndarray) -> TransferPlan:
        """What a chunk loads, and what leaves the prefill cache for it."""
        if self.prefill_cache is None or not len(missing):
            return TransferPlan(load=(missing + layer * self.experts).tolist())
        present = self.prefill_cache.resident(layer)[missing]
        # Those that are present first, before they are evicted.
        return self.prefill_cache.request(layer, np.concatenate([missing[present], missing[~present]]))

    def _through_decode_cache(self, layer: int, requested: np.ndarray) -> ChunkPlan:
        hits = 0
        load: list[FlatId] = []
        evict: list[FlatId] = []
        for begin in range(0, len(requested), self.decode_cache.capacity):
            part = requested[begin : begin + self.decode_cache.capacity]
            plan = self.decode_cache.request(layer, part, counted=False)
            hits += plan.hits
            load += plan.load
            evict += plan.evict
        kept = requested[self.decode_cache.resident(layer)[requested]] + layer * self.experts
        return ChunkPlan(hits=hits, load=load, kept=kept.tolist(), decode=TransferPlan(hits, load, evict))

    def _choose(self, layer: int, rows_TK: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The best candidates that fit, the best last, so that recency agrees with the rule."""
        if self.rule == LRFU:
            self._decay(layer, rows_TK)
            score_E = self._score_LE[layer]
        else:
            prompt = self._prompts[layer] = self._prompts[layer] or self._new_prompt()
            score_E = prompt.add(rows_TK)
        order = candidates[np.argsort(score_E[candidates], kind="stable")]
        return order[-self.decode_cache.capacity :]

    def _new_prompt(self) -> "_LastTokens | _WholePrompt":
        if self.rule == POOL:
            return _WholePrompt(self.experts)
        return _LastTokens(self.experts, tokens=int(self.amount))

    def _decay(self, layer: int, rows_TK: np.ndarray) -> None:
        for row_K in rows_TK:
            self._score_LE[layer] *= self.amount
            self._score_LE[layer, row_K[row_K < self.experts]] += 1


class _LastTokens:
    """How often the last tokens of a prompt used each expert."""

    def __init__(self, experts: int, tokens: int) -> None:
        self._experts = experts
        self._tokens = tokens
        self._rows: np.ndarray | None = None

    def add(self, rows_TK: np.ndarray) -> np.ndarray:
        """float64 [E]: the uses with these rows, of equal ones the later higher."""
        rows = rows_TK if self._rows is None else np.concatenate([self._rows, rows_TK])
        self._rows = rows[-self._tokens :]
        used = self._rows[self._rows < self._experts]
        score_E = np.bincount(used, minlength=self._experts).astype(np.float64)
        score_E[used] += (np.arange(len(used)) + 1) / (len(used) + 1)
        return score_E


class _WholePrompt:
    """How often a prompt used each expert, and when last."""

    def __init__(self, experts: int) -> None:
        self._uses_E = np.zeros(experts, np.int64)
        self._last_E = np.zeros(experts, np.int64)  # counted from 1
        self._accesses = 0

    def add(self, rows_TK: np.ndarray) -> np.ndarray:
        """float64 [E]: the uses with these rows, of equal ones the later higher."""
        used = rows_TK[rows_TK < len(self._uses_E)]
        self._uses_E += np.bincount(used, minlength=len(self._uses_E))
        self._last_E[used] = self._accesses + np.arange(len(used)) + 1
        self._accesses += len(used)
        return self._uses_E + self._last_E / (self._accesses + 1)


def prefill_cache_of(sizes: Sizes, policy: str | None, slots: int) -> ExpertCache | None:
    """A prefill cache of `slots` experts of all layers; None without a policy."""
    if policy is None:
        return None
    return ExpertCache(
        policy,
        layers=sizes.layers,
        experts=sizes.num_experts,
        capacity=slots,
        scope="global",
        access="sequential",
    )


def parse_prefill_handoff(spec: str) -> tuple[str, float]:
    """`rule:option=value` -> (rule, value). UserError lists the choices."""
    rule, _, text = spec.partition(":")
    if rule not in DEFAULTS:
        raise unknown_name("hand-off rule", rule, DEFAULTS)
    key, _, value = text.partition("=")
    if not text:
        return rule, DEFAULTS[rule]
    if key != OPTIONS.get(rule):
        raise UserError(
            f"prefill_handoff '{spec}': unknown option '{key}': choose from {OPTIONS.get(rule, 'none')}"
        )
    try:
        amount = float(value)
    except ValueError:
        amount = -1.0
    if not (0 < amount <= 1 if rule == LRFU else amount >= 1 and amount.is_integer()):
        raise UserError(f"prefill_handoff '{spec}': {key} is out of range")
    return rule, amount


def _distinct(ids: np.ndarray) -> np.ndarray:
    """In order of first appearance."""
    _, first = np.unique(ids, return_index=True)
    return ids[np.sort(first)]
