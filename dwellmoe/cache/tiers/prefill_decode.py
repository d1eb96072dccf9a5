"""Knows how prefill and decode share experts without prefill wrecking the decode cache; moves nothing.

A prompt asks a layer for most of its experts, once. So its experts pass through a small buffer instead of the
decode cache, and a hand-over rule says which of those that just passed by stay for decoding. Letters: T
tokens, K chosen, E experts a layer.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError, unknown_name

SHARED, NONE, RECENT, LRFU = "shared", "none", "recent", "lrfu"
DEFAULTS = {SHARED: 0.0, NONE: 0.0, RECENT: 8.0, LRFU: 0.95}
OPTIONS = {RECENT: "tokens", LRFU: "decay"}
NO_ROWS = np.empty((0, 0), np.int64)
NO_NUMBERS = np.empty(0, np.int32)


class ChunkStep(NamedTuple):
    """What one layer of a prefill chunk does; expert e of layer l is number l * E + e."""

    hits: int  # distinct experts of the chunk that were resident
    loads: np.ndarray  # int32: to be fetched, each once a chunk, in order of first use
    evictions: np.ndarray  # int32: leave the decode cache when the layer's chunk is done
    kept: np.ndarray  # int32: of the chunk's experts, in the decode cache afterwards
    released: np.ndarray = NO_NUMBERS  # int32: leave the prefill cache, some only once they were used


class PrefillDecodeCache:
    """Looks like one cache: `prefill` takes the rows of a chunk, `decode` the experts of a token.

    prefill_handoff  "shared"            prefill goes through the decode cache as well, a cacheful at a time
               "none"              prefill only passes through; the decode cache keeps what it had
               "recent:tokens=8"   after each chunk the cache holds what the last 8 prompt tokens used most
               "lrfu:decay=0.95"   after each chunk it holds the best of old and new by a count that fades
    passing    what the streaming buffer holds on to, under a policy of its own: one cache for all layers
               (scope "global", access "sequential"). What decoding asks for moves over. Without it
               the buffer forgets each expert once it is used.
    """

    def __init__(
        self,
        decode: ExpertCache,
        prefill_handoff: str = "recent:tokens=8",
        passing: ExpertCache | None = None,
    ) -> None:
        if decode.scope != "layer":
            raise UserError("PrefillDecodeCache needs a decode cache with scope 'layer'")
        if passing and (passing.scope, passing.access) != ("global", "sequential"):
            raise UserError(
                "PrefillDecodeCache needs a prefill cache with scope 'global' and access 'sequential'"
            )
        self.cache, self.prefill_handoff, self.passing = decode, prefill_handoff, passing
        self.rule, self.amount = parse_prefill_handoff(prefill_handoff)
        self.moved: list[int] = []  # of the last decode step's loads: the prefill cache still had them
        self._score = np.zeros((decode.layers, decode.experts))
        self._recent: list[np.ndarray] = [NO_ROWS] * decode.layers  # last rows of a prompt

    def reset(self) -> None:
        """Back to cold caches, and to no memory of what prompts asked for."""
        self.cache.reset()
        if self.passing:
            self.passing.reset()
        self._score[:] = 0
        self._recent = [NO_ROWS] * self.cache.layers

    def decode(self, layer: int, experts) -> TransferPlan:
        """One token's request, as `ExpertCache.request`."""
        if self.rule == LRFU:
            self._fade(layer, np.asarray(experts)[None])
        self._recent[layer] = NO_ROWS
        plan = self.cache.request(layer, experts)
        if self.passing:
            first = layer * self.cache.experts
            self.moved = [n for n in plan.load if self.passing.remove(layer, n - first)]
        return plan

    def prefill(self, layer: int, experts_TK) -> ChunkStep:
        """One layer of a chunk: the experts of each of its tokens, in order; ids >= E (empty slots) are
        passed over.
        """
        rows = np.asarray(experts_TK, np.int64)
        asked = _distinct(rows[rows < self.cache.experts])
        resident = self.cache.resident(layer)
        if self.rule == SHARED:
            return self._through_the_cache(layer, asked)
        loads, released = self._pass_through(layer, asked[~resident[asked]])
        evictions = NO_NUMBERS
        if self.rule != NONE:
            stay = self._choose(layer, rows, np.union1d(asked, np.flatnonzero(resident)))
            evictions = np.array(self.cache.request(layer, stay, counted=False).evict, np.int32)
        kept = asked[self.cache.resident(layer)[asked]]
        if self.passing:
            for expert in kept[~resident[kept]].tolist():
                self.passing.remove(layer, expert)
        hits, numbers = len(asked) - len(loads), (kept + layer * self.cache.experts).astype(np.int32)
        return ChunkStep(hits, loads, evictions, numbers, released)

    def _pass_through(self, layer: int, missing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(to be fetched, leaving the prefill cache) where a chunk asks for what the decode cache lacks."""
        if self.passing is None:
            return (missing + layer * self.cache.experts).astype(np.int32), NO_NUMBERS
        if not len(missing):
            return NO_NUMBERS, NO_NUMBERS
        here = self.passing.resident(layer)[missing]
        plan = self.passing.request(
            layer, np.concatenate([missing[here], missing[~here]])
        )  # before they leave
        return np.array(plan.load, np.int32), np.array(plan.evict, np.int32)

    def _through_the_cache(self, layer: int, asked: np.ndarray) -> ChunkStep:
        hits, loads, evictions = 0, [], []
        for at in range(0, len(asked), self.cache.capacity):
            plan = self.cache.request(layer, asked[at : at + self.cache.capacity], counted=False)
            hits += plan.hits
            loads += plan.load
            evictions += plan.evict
        kept = asked[self.cache.resident(layer)[asked]] + layer * self.cache.experts
        return ChunkStep(
            hits, np.array(loads, np.int32), np.array(evictions, np.int32), kept.astype(np.int32)
        )

    def _choose(self, layer: int, rows: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """The best candidates that fit, the best last, so that recency agrees with the rule."""
        if self.rule == LRFU:
            self._fade(layer, rows)
            worth = self._score[layer]
        else:
            before = self._recent[layer].reshape(-1, rows.shape[1])
            last = self._recent[layer] = np.concatenate([before, rows])[-int(self.amount) :]
            used = last[last < self.cache.experts]
            worth = np.bincount(used, minlength=self.cache.experts).astype(np.float64)
            worth[used] += (np.arange(len(used)) + 1) / (len(used) + 1)  # ties: the later one
        order = candidates[np.argsort(worth[candidates], kind="stable")]
        return order[-self.cache.capacity :]

    def _fade(self, layer: int, rows: np.ndarray) -> None:
        for row in rows:
            self._score[layer] *= self.amount
            self._score[layer, row[row < self.cache.experts]] += 1


def parse_prefill_handoff(spec: str) -> tuple[str, float]:
    """`rule:option=value` -> (rule, value)."""
    rule, _, text = spec.partition(":")
    if rule not in DEFAULTS:
        raise unknown_name("hand-over rule", rule, DEFAULTS)
    key, _, value = text.partition("=")
    if not text:
        return rule, DEFAULTS[rule]
    if key != OPTIONS.get(rule):
        raise UserError(
            f"hand-over '{spec}': unknown option '{key}': choose from {OPTIONS.get(rule, 'none')}"
        )
    try:
        amount = float(value)
    except ValueError:
        amount = -1.0
    if not (0 < amount <= 1 if rule == LRFU else amount >= 1 and amount.is_integer()):
        raise UserError(f"hand-over '{spec}': {key} is out of range")
    return rule, amount


def _distinct(ids: np.ndarray) -> np.ndarray:
    """In order of first appearance."""
    _, first = np.unique(ids, return_index=True)
    return ids[np.sort(first)]
