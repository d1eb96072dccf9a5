"""The registry of locality objectives: every file of this folder that defines `loss`."""

import functools
import importlib
import pkgutil
from collections.abc import Callable

from torch import Tensor

from dwellmoe.errors import unknown_name
from dwellmoe.registry import name_of, options_of

LocalityObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(logits_LBTE, chosen_LBTK, mask_BP, *, options) -> scalar`: the mean over layers and valid pairs of
one term a pair.

Logits are raw gate logits, chosen the experts that ran (no gradient; -1: a slot that a routing strategy left
empty), mask the valid pairs (P = T - 1). A pure function: no state, no gradient through the choice; computed
in float32 whatever the model's type. Options are keywords with defaults; a file that has any defines `check`,
of the same options, which raises UserError.
"""


def objective_names() -> list[str]:
    """Names a user may give."""
    return sorted(file.name for file in pkgutil.iter_modules(__path__))


def load_objective(spec: str) -> LocalityObjective:
    """The objective `name` or `name:option=value,...`. Raises UserError listing the names or options there
    are.
    """
    name = name_of(spec)
    if name not in objective_names():
        raise unknown_name("locality objective", name, objective_names())
    module = importlib.import_module(f"{__name__}.{name}")
    options = options_of("locality objective", spec, module.loss)
    if options:
        module.check(**options)
    return functools.partial(module.loss, **options)
