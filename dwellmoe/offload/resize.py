"""Gives the engine behind a model another budget, between two requests."""

import dataclasses
from typing import Any

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.families.base import unwrap
from dwellmoe.offload.attach import SlotPlan, check_slots, make_caches, make_predictors, plan_slots
from dwellmoe.offload.check_settings import check_budgets
from dwellmoe.offload.engine import OWNER, Engine
from dwellmoe.offload.expert_weights import ExpertWeights
from dwellmoe.offload.experts_implementation import show_slots


def resize(model: nn.Module, expert_budget: str) -> None:
    """Gives the engine behind a model a budget of slots a layer, percent or bytes from now on.

    Its caches are cold afterwards and its counts go on; a trace that is being recorded ends. The slots of
    before are given back first, so that memory never holds both. Raises UserError for a budget that cannot
    work, and for a model without an engine; then nothing has changed.
    """
    owner: Any = next((module for module in model.modules() if OWNER in vars(module)), None)
    if owner is None:
        raise UserError("all experts are in memory: there is no budget to change (--expert_budget)")
    engine: Engine = getattr(owner, OWNER)
    settings = dataclasses.replace(engine.settings, expert_budget=expert_budget)
    check_budgets(settings)
    weights, counted = engine.cached_experts.slot_table.weights, engine.hit_counts
    before, after = (plan_slots(owner, engine.layers, weights, each) for each in (engine.settings, settings))
    check_slots(owner, after)
    _hide_slots(owner, engine)
    engine.cached_experts.release()
    try:
        _hold(owner, engine, weights, after)
    except BaseException:
        _hold(owner, engine, weights, before)
        raise
    finally:
        engine.go_on(counted)


def _hide_slots(model: Any, engine: Engine) -> None:
    """No parameter is a view of slots any more: those of experts are on the meta device, without memory."""
    for layer in engine.layers:
        experts = unwrap(model.get_submodule(layer.experts))
        for name, weight in list(experts.named_parameters(recurse=False)):
            if engine.owns(weight):
                setattr(experts, name, nn.Parameter(weight.detach().to("meta"), requires_grad=False))


def _hold(model: Any, engine: Engine, weights: ExpertWeights, plan: SlotPlan) -> None:
    held = engine.cached_experts
    if plan.prefetch_budget and engine.predictors.prefetch is None:
        placement = engine.predictors.placement
        engine.predictors = make_predictors(model, engine.layers, plan, held.forward_pass, placement)
    caches = make_caches(model, plan, weights, engine.predictors, held.readers, held.statistics)
    held.hold(*caches)
    show_slots(held, model, engine.layers)
    engine.settings, engine.budget = plan.settings, plan.budget
