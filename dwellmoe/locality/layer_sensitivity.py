"""Layer sensitivity: how much the loss rises when a layer's gate changes, and what strength follows.

Letters: L layers that are smoothed, E experts, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dwellmoe.data.collate import IGNORED_LABEL

LEAST_SENSITIVITY = 0.1
"""As a share of the mean: bounds how much more one layer is smoothed than another."""


def sensitivities(
    model: nn.Module, changes: Mapping[str, Tensor], batches: Sequence[dict[str, Tensor]]
) -> list[float]:
    """Expected rise of the loss, in nats a token, for each parameter of the model that is changed alone.

    Half the change's square in the Fisher information: the slope of a batch's summed loss along the change,
    squared, by its tokens. All layers come out of one backward pass a batch, where measuring the rise itself
    takes a pass for each layer and drowns in the noise of few tokens. `changes`: name -> [E, D], a gate each.
    """
    plain = {name: model.get_parameter(name).detach() for name in changes}
    total_L, tokens = torch.zeros(len(changes), dtype=torch.float64), 0
    for batch in tqdm(batches, desc="layer sensitivity", disable=None):
        step_L = torch.zeros(len(changes), requires_grad=True)
        moved = {
            name: plain[name] + (step * change).to(plain[name])
            for step, (name, change) in zip(step_L.unbind(), changes.items(), strict=True)
        }
        counted = int((batch["labels"][:, 1:] != IGNORED_LABEL).sum())
        loss = torch.func.functional_call(model, moved, (), batch).loss * counted
        (slope_L,) = torch.autograd.grad(loss, step_L)
        total_L += slope_L.double().square() / 2
        tokens += counted
    return (total_L / max(tokens, 1)).tolist()


def strengths(strength: float, sensitivity_of_each: Sequence[float]) -> list[float]:
    """The strength of each layer, in inverse proportion to its sensitivity; their mean is `strength`.

    The loss grows with the square of a layer's change, so the total rises least when each layer changes in
    inverse proportion to its sensitivity.
    """
    sensitivity_L = torch.tensor(sensitivity_of_each, dtype=torch.float64)
    share_L = sensitivity_L.clamp(
        min=max(LEAST_SENSITIVITY * sensitivity_L.mean().item(), 1e-12)
    ).reciprocal()
    return (strength * share_L / share_L.mean()).tolist()
