"""The registry of locality objectives: every file of this folder that defines `loss`."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dwellmoe.errors import UserError
from dwellmoe.registry import Registry

if TYPE_CHECKING:  # a name is checked without torch
    from torch import Tensor

    from dwellmoe.locality.by_layer import ObjectiveOfLayers, Rank

LocalityObjective = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""`loss(logits_LBTE, chosen_LBTK, mask_BP, *, options) -> scalar`: the mean over layers and valid pairs of
one term a pair, or a token of a pair.

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


class _Part(NamedTuple):
    """One objective of a sum, as it is written: `name:option=value,...`, and its factor."""

    spec: str
    factor: float


_PLUS = re.compile(r"\+(?=[A-Za-z_]|[^+*:]*\*)")  # not that of 1e+3


def load_objective(spec: str, ranks: "Sequence[Rank] | None" = None) -> "ObjectiveOfLayers":
    """The objective `name` or `name:option=value,...`, or a sum of several as in `cache_miss+0.5*pool`, as a
    function of logits, chosen experts and mask.

    The first two are tensors [L, ...] or a tensor for each layer. `ranks`, one a layer, are what objectives
    by rank are given in place of logits. UserError lists the known names or options.
    """
    parts = _parts(spec)
    loaded = [(part, *_load(part.spec)) for part in parts]
    from dwellmoe.locality.by_layer import Term, weighted_sum  # torch

    terms = [
        Term(
            loss=functools.partial(loss, **options),
            factor=part.factor,
            per_layer=_declares(loss, "PER_LAYER"),
            ranks=ranks if _declares(loss, "BY_RANK") else None,
        )
        for part, loss, options in loaded
    ]
    return functools.partial(weighted_sum, terms)


def _parts(spec: str) -> list[_Part]:
    """The objectives of a sum. UserError for a factor that is no number above 0."""
    return [_part(spec, text) for text in _PLUS.split(spec)]


def _part(spec: str, text: str) -> _Part:
    factor, times, name = text.partition("*")
    if not times or ":" in factor:
        return _Part(text, 1.0)
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise UserError(f"locality objective '{spec}': the factor '{factor}' must be a number above 0")
    return _Part(name, value)


def _load(spec: str) -> tuple[Any, dict[str, Any]]:
    """The loss of one objective, and its options."""
    loss, options = OBJECTIVES.parse(spec)
    if options and (check := getattr(inspect.getmodule(loss), "check", None)):
        check(**options)
    return loss, options


def check_objective(spec: str) -> None:
    """Raises UserError as `load_objective` does, and imports torch only to check options."""
    for part in _parts(spec):
        if ":" in part.spec or part.spec not in objective_names():
            _load(part.spec)


def is_by_rank(spec: str) -> bool:
    """Whether the objective, or one of a sum, is given ranks in place of logits."""
    return any(_declares(OBJECTIVES.parse(part.spec)[0], "BY_RANK") for part in _parts(spec))


def _declares(loss: Any, name: str) -> bool:
    return getattr(inspect.getmodule(loss), name, False)
