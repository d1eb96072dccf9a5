"""The prompt's pool: what decoding uses beside the experts that its prompt used most.

Letters: L layers, E experts a layer, C capacities, R requests (or groups of them), K chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwellmoe.cache.budget import Budget, budget_of, layer_slots
from dwellmoe.cache.intervals import RESAMPLES, rates
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.replay.sweep import MOST_GROUPS
from dwellmoe.cache.trace import EMPTY, PREFILL, RoutingTrace, release

SHARES = ("12.5%", "25%", "50%")


@dataclass(frozen=True)
class PromptPoolRow:
    """Share of a request's decode accesses outside the pool of its prompt.

    In each layer the pool is the `capacity` experts that the prompt's tokens used most, of equal ones those
    used later; a prompt that used fewer has a smaller pool. In a conversation each answer has the pool of the
    turn before it. What was decoded without a prompt is not counted. `_ci95` is a 95 % bootstrap interval
    over requests, None with fewer than two.
    """

    capacity: int
    capacity_percent: float
    accesses: int
    outside: float
    outside_ci95: list[float] | None
    layer_outside: list[float]
    layer_outside_ci95: list[list[float] | None] | None

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


def prompt_pool_rows(
    trace: RoutingTrace, capacities: Sequence[int | str] = SHARES, resamples: int = RESAMPLES
) -> list[PromptPoolRow]:
    """A row for each capacity (as in `replay`, at least K experts); none where no prompt is answered."""
    slots = dict.fromkeys(layer_slots(trace, capacity) for capacity in capacities)
    budgets = [budget_of(trace, "layer", each) for each in slots]
    inside_RCL, accesses_RL = _counts(trace, budgets)
    if not accesses_RL.any():
        return []
    outside_RCL = accesses_RL[:, None] - inside_RCL
    shares = rates(outside_RCL, accesses_RL, accesses_RL.sum(axis=1), resamples)
    accesses = int(accesses_RL.sum())
    return [
        PromptPoolRow(budget.capacity, budget.capacity_percent, accesses, *share)
        for budget, share in zip(budgets, shares, strict=True)
    ]


def _counts(trace: RoutingTrace, budgets: Sequence[Budget]) -> tuple[np.ndarray, np.ndarray]:
    """int64 [R, C, L] decode accesses within the pool, and [R, L] all of them; many requests in groups."""
    order = np.argsort(trace.request, kind="stable")
    names, request = np.unique(trace.request, return_inverse=True)
    groups = min(len(names), MOST_GROUPS)
    inside_RCL = np.zeros((groups, len(budgets), trace.layers), np.int64)
    accesses_RL = np.zeros((groups, trace.layers), np.int64)
    slots_C = np.array([budget.capacity for budget in budgets])
    group = request * groups // len(names)
    state = (trace.num_experts, slots_C, inside_RCL, accesses_RL)
    _count(trace.experts, trace.phase, trace.request, order, group, *state)
    release(trace.experts)
    return inside_RCL, accesses_RL


@compiled
def _count(experts, phase, request, order, group, num_experts, slots_C, inside_RCL, accesses_RL):
    """Takes the rows in `order`, a request after the other."""
    layers = experts.shape[1]
    uses_LE = np.zeros((layers, num_experts), np.int64)
    last_LE = np.zeros((layers, num_experts), np.int64)
    place_LE = np.full((layers, num_experts), num_experts, np.int64)  # in the order of use; E: not used
    reading, answering = False, False
    for i in range(len(order)):
        row = order[i]
        other_request = i > 0 and request[row] != request[order[i - 1]]
        if phase[row] == PREFILL:
            if other_request or not reading:
                uses_LE[:] = 0
            reading, answering = True, False
            _use(experts[row], i, uses_LE, last_LE)
            continue
        if other_request:
            reading = answering = False
        if reading:
            _rank(uses_LE, last_LE, place_LE)
            reading, answering = False, True
        if answering:
            _look_up(experts[row], place_LE, slots_C, inside_RCL[group[row]], accesses_RL[group[row]])


@compiled
def _use(chosen_LK, step, uses_LE, last_LE):
    for layer in range(len(chosen_LK)):
        for slot in range(chosen_LK.shape[1]):
            expert = chosen_LK[layer, slot]
            if expert != EMPTY:
                uses_LE[layer, expert] += 1
                last_LE[layer, expert] = step * chosen_LK.shape[1] + slot


@compiled
def _rank(uses_LE, last_LE, place_LE):
    """The place of each used expert: 0 for the most used, of equal ones for that used last."""
    experts = uses_LE.shape[1]
    for layer in range(len(uses_LE)):
        by_time_E = np.argsort(last_LE[layer])
        order = by_time_E[np.argsort(uses_LE[layer][by_time_E], kind="mergesort")]  # stable
        for i in range(experts):
            expert = order[experts - 1 - i]
            place_LE[layer, expert] = i if uses_LE[layer, expert] else experts


@compiled
def _look_up(chosen_LK, place_LE, slots_C, inside_CL, accesses_L):
    for layer in range(len(chosen_LK)):
        for expert in chosen_LK[layer]:
            if expert == EMPTY:
                continue
            accesses_L[layer] += 1
            for case in range(len(slots_C)):
                inside_CL[case, layer] += place_LE[layer, expert] < slots_C[case]
