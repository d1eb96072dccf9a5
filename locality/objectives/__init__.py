"""The registry of locality objectives: every file of this folder that defines `loss`."""

import importlib
import pkgutil
from collections.abc import Callable

from torch import Tensor

from errors import unknown_name

LocalityObjective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`loss(logits_LBTE, chosen_LBTK, mask_BP) -> scalar`: the mean over layers and valid pairs of one term a
pair.

Logits are raw gate logits, chosen the experts that ran (no gradient), mask the valid pairs (P = T - 1). A
pure function: no state, no gradient through the choice; computed in float32 whatever the model's type.
"""


def objective_names() -> list[str]:
    """Names a user may give."""
    return sorted(file.name for file in pkgutil.iter_modules(__path__))


def load_objective(name: str) -> LocalityObjective:
    """The objective of that name. Raises UserError listing the names that exist."""
    if name not in objective_names():
        raise unknown_name("locality objective", name, objective_names())
    return importlib.import_module(f"{__name__}.{name}").loss
