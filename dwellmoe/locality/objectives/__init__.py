"""The registry of locality objectives: every file of this folder that defines `loss`."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dwellmoe.registry import Registry, name_of

if TYPE_CHECKING:  # a name is checked without torch
    from torch import Tensor

    from dwellmoe.locality.by_layer import ObjectiveOfLayers, Rank

LocalityObjective = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""`loss(logits_LBTE, chosen_LBTK, mask_BP, *, options) -> scalar`: the mean over layers and valid pairs of
one term a pair.

`logits`: raw gate logits; `chosen`: the experts that ran, without a gradient (-1: a slot that a routing
strategy left empty); `mask`: the valid pairs (P = T - 1). A pure function: no state, no gradient through the
choice, computed in float32 whatever the model's type. Options are keywords with defaults; a file may define
`check`, with the same options, which raises UserError for a value that makes no sense.

A file may define `BY_RANK = True`: in place of the logits it is given what each router ranks its experts by,
of which the K largest are the choice. For most families that is the logits; for some it is score + bias, with
-inf for the experts of groups that are out (DeepSeek-V3).

A file may define `PER_LAYER = True`: its loss of all layers is the mean of its losses of each. It is then
given one layer at a time (L = 1), in float32, and takes memory for one layer. Without it, it is given all at
once.
"""


OBJECTIVES = Registry("locality objective", __name__, "loss")


def objective_names() -> list[str]:
    """Names a user may give."""
    return OBJECTIVES.names()


def load_objective(spec: str, ranks: "Sequence[Rank] | None" = None) -> "ObjectiveOfLayers":
    """The objective `name` or `name:option=value,...` as a function of logits, chosen experts and mask.

    The first two are tensors [L, ...] or a tensor for each layer. `ranks`, one a layer, are applied to the
    logits first. UserError lists the known names or options.
    """
    loss, options = OBJECTIVES.parse(spec)
    if options and (check := getattr(inspect.getmodule(loss), "check", None)):
        check(**options)
    from dwellmoe.locality.by_layer import all_at_once, one_by_one  # torch

    evaluate = one_by_one if _declares(loss, "PER_LAYER") else all_at_once
    return functools.partial(evaluate, functools.partial(loss, **options), ranks)


def check_objective(spec: str) -> None:
    """Raises UserError as `load_objective` does, and imports torch only to check options."""
    if ":" in spec or name_of(spec) not in objective_names():
        load_objective(spec)


def is_by_rank(spec: str) -> bool:
    """Whether the objective is given ranks in place of logits."""
    return _declares(OBJECTIVES.parse(spec)[0], "BY_RANK")


def _declares(loss: Any, name: str) -> bool:
    return getattr(inspect.getmodule(loss), name, False)
