"""Small nets, one for each MoE layer, trained together until the validation loss stops falling.

Letters: L layers, B rows of a batch, I inputs, H hidden units, O outputs.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.cache.progress import Progress

BATCH_ROWS = 256
LEARNING_RATE = 2e-3
PATIENCE = 4
"""Epochs without a lower validation loss before training stops."""
KNOWN_HORIZONS = {64: 48, 128: 98}


def long_horizon(experts: int) -> int:
    """Token steps: CECAR's for 64 and 128 experts, three quarters of the experts otherwise."""
    return KNOWN_HORIZONS.get(experts, max(4, round(0.75 * experts)))


def horizon_label(distance: np.ndarray, horizon: int) -> np.ndarray:
    """(clip(d, 1, H) - 1) / (H - 1): 0 for the next step, 1 for beyond the horizon or never."""
    return ((np.clip(distance, 1, horizon) - 1) / (horizon - 1)).astype(np.float32)


class LayerNets(nn.Module):
    """A net a layer: I -> H -> H -> O with SiLU, absolute value at the end; x [L, B, I] -> [L, B, O]."""

    def __init__(self, layers: int, inputs: int, hidden: int, outputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [(hidden, inputs), (hidden, hidden), (outputs, hidden)]
        self.weights = nn.ParameterList(_drawn((layers, *size), size[1], generator) for size in sizes)
        self.biases = nn.ParameterList(_drawn((layers, size[0]), size[1], generator) for size in sizes)

    def forward(self, x_LBI: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x_LBI = torch.baddbmm(bias[:, None], x_LBI, weight.transpose(1, 2))
            x_LBI = x_LBI.abs() if i == 2 else nn.functional.silu(x_LBI)
        return x_LBI

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights under the names of `dwellmoe.cache.learned.nets`."""
        kinds = {"weight": self.weights, "bias": self.biases}
        return {f"{i}.{kind}": kinds[kind][i].detach().numpy() for i in range(3) for kind in kinds}


def _drawn(shape: tuple[int, ...], inputs: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / inputs**0.5)


class Batches:
    """At most `most` random batches of rows, the same in all layers: x [L, N, I], y [L, N, O]."""

    def __init__(self, x: np.ndarray, y: np.ndarray, most: int, seed: int) -> None:
        self.x = torch.from_numpy(x)
        self.y = torch.from_numpy(y)
        self.most = most
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self):
        order = torch.randperm(self.x.shape[1], generator=self.generator)
        for rows in order[: self.most * BATCH_ROWS].split(BATCH_ROWS):
            yield self.x[:, rows], self.y[:, rows]


def train(
    module: nn.Module,
    loss: Callable[[tuple[Tensor, Tensor]], Tensor],
    data: Batches,
    validation: Batches,
    epochs: int,
    progress: Progress | None = None,
) -> list[dict]:
    """AdamW until the validation loss has not fallen for some epochs; leaves the best weights in `module`."""
    optimizer = torch.optim.AdamW(module.parameters(), LEARNING_RATE)
    validation_batches = list(validation)
    best, best_loss, log = copy.deepcopy(module.state_dict()), float("inf"), []
    for epoch in range(epochs):
        losses = [_step(optimizer, loss(batch)) for batch in data]
        with torch.no_grad():
            found = float(np.mean([float(loss(batch)) for batch in validation_batches]))
        log.append({"epoch": epoch, "train_loss": float(np.mean(losses)), "validation_loss": found})
        if found < best_loss:
            best, best_loss = copy.deepcopy(module.state_dict()), found
        if progress:
            progress(epoch + 1, epochs)
        if epoch - min(range(len(log)), key=lambda i: log[i]["validation_loss"]) >= PATIENCE:
            break
    module.load_state_dict(best)
    return log


def _step(optimizer: torch.optim.Optimizer, value: Tensor) -> float:
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return float(value.detach())
