"""The nets of `ml_forecast`: from the experts that a layer's last tokens chose to log-odds of coming uses.

Letters: T token steps, E experts a layer, F features, H horizons, S inputs of E experts each, D hidden units.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, silu
from torch.optim.lr_scheduler import LambdaLR

from dwellmoe.cache.access import used_by
from dwellmoe.cache.learned.forecast import HORIZONS, LOOKED_BACK, NEIGHBOURS
from dwellmoe.cache.trace import RoutingTrace

HIDDEN = 256
INPUTS = LOOKED_BACK + len(NEIGHBOURS)
BATCH_STEPS = 512
LEARNING_RATE, FEATURE_RATE = 4e-3, 1e-2
WARM_UP = 0.1  # of the steps, in which the rates rise; they fall to nothing in the others
WEIGHT_DECAY = 1e-2
DROPOUT = 0.2  # of inputs and hidden units: without it the nets forecast text of other kinds badly
FEWEST_EPOCHS, FEWEST_UPDATES = 8, 3000
"""Both are reached unless the caller allows fewer epochs: falling rates need to know how long they fall."""


class LayerSteps(NamedTuple):
    """What one layer's net learns from, one row a token step."""

    features: Tensor  # float32 [T, E, F]
    chosen: Tensor  # uint8 [T, S, E]: 1 for each expert that the last steps and the neighbours chose
    distance: Tensor  # int64 [T, E]: steps to the next use

    def labels(self) -> Tensor:
        """float32 [T, H, E]: whether an expert is used within each horizon."""
        return torch.stack([self.distance <= horizon for horizon in HORIZONS], dim=1).float()


def inputs_of(trace: RoutingTrace, layer: int) -> np.ndarray:
    """uint8 [T, S, E]: the experts that are an input of one layer's net after each step."""
    sources = [(0, steps) for steps in range(LOOKED_BACK)] + list(NEIGHBOURS)
    found = np.zeros((trace.steps, INPUTS, trace.num_experts), np.uint8)
    for at, (up, steps) in enumerate(sources):
        if 0 <= layer + up < trace.layers:
            found[steps:, at] = used_by(trace, layer + up)[: trace.steps - steps]
    return found


class ForecastNet(nn.Module):
    """One layer: features [T, E, F] and chosen experts [T, S, E] -> log-odds [T, H, E] above `offset_H`."""

    def __init__(self, weight_HF: np.ndarray, experts: int, offset_H: np.ndarray, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.weight = nn.Parameter(torch.tensor(weight_HF, dtype=torch.float32))
        self.dropout = nn.Dropout(DROPOUT)
        self.rows = nn.Linear(INPUTS * experts, HIDDEN)
        self.out = nn.Linear(HIDDEN, len(HORIZONS) * experts)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("offset", torch.tensor(offset_H, dtype=torch.float32)[:, None])

    def forward(self, features_TEF: Tensor, chosen_TSE: Tensor) -> Tensor:
        hidden_TD = silu(self.rows(self.dropout(chosen_TSE.flatten(1).float())))
        added_TO = self.out(self.dropout(hidden_TD))
        counted_THE = torch.einsum("tef,hf->the", features_TEF, self.weight)
        return counted_THE + added_TO.view(counted_THE.shape) + self.offset  # type: ignore[operator]

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights under the names that `learned/forecast.py` reads."""
        rows = self.rows.weight.T.reshape(INPUTS, -1, HIDDEN)
        found = {
            "layer": self.weight,
            "rows": rows[:LOOKED_BACK],
            "neighbours": rows[LOOKED_BACK:],
            "hidden_bias": self.rows.bias,
            "out": self.out.weight.T,
            "out_bias": self.out.bias,
        }
        return {name: value.detach().numpy().copy() for name, value in found.items()}


def train_net(net: ForecastNet, data: LayerSteps, judging: LayerSteps, epochs: int, seed: int) -> float:
    """Trains by log-loss, at most `epochs`; leaves the best of them; returns its loss on `judging`."""
    generator = torch.Generator().manual_seed(seed)
    labels = data.labels()
    updates = -(-len(labels) // BATCH_STEPS)
    epochs = min(epochs, max(FEWEST_EPOCHS, -(-FEWEST_UPDATES // updates)))
    optimizer, schedule = optimizer_of(net, epochs * updates)
    best, best_loss = copy.deepcopy(net.state_dict()), log_loss(net, judging)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH_STEPS):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(
                net(data.features[rows], data.chosen[rows]), labels[rows]
            ).backward()
            optimizer.step()
            schedule.step()
        loss = log_loss(net, judging)
        if loss < best_loss:
            best, best_loss = copy.deepcopy(net.state_dict()), loss
    net.load_state_dict(best)
    return best_loss


def optimizer_of(net: ForecastNet, steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW for the net and for the weights of its features, and the course of their rates."""
    groups = [
        {"params": [net.weight], "lr": FEATURE_RATE, "weight_decay": 0.0},
        {"params": [*net.rows.parameters(), *net.out.parameters()], "lr": LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY)
    return optimizer, LambdaLR(optimizer, lambda step: min((step + 1) / (WARM_UP * steps), 1 - step / steps))


def log_loss(net: ForecastNet, steps: LayerSteps) -> float:
    """Nats an expert, mean of all horizons."""
    net.eval()
    with torch.no_grad():
        odds = net(steps.features, steps.chosen)
    net.train()
    return float(binary_cross_entropy_with_logits(odds, steps.labels()))
