"""Trains ScoutGate on a recorded trace: binary cross-entropy, and a term that pulls sum_e p towards K.

Letters: R rows (tokens), L layers, E experts a layer, K chosen.
"""

import copy

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from dwellmoe.cache.prediction import used_of
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.routing.scoutgate import ScoutGate, windows

BATCH_ROWS = 128
LEARNING_RATE = 2e-3
PATIENCE = 2
"""Epochs without a lower validation loss before training stops."""
CARDINALITY = 0.01
"""Weight of the term on the number of experts."""


def train_scoutgate(
    embedding: Tensor,
    train: RoutingTrace,
    validation: RoutingTrace,
    epochs: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[ScoutGate, list[dict]]:
    """The gate with the least validation loss, and the log of its epochs."""
    torch.manual_seed(seed)
    gate = ScoutGate(embedding, train.layers, train.num_experts)
    optimizer = torch.optim.AdamW([p for p in gate.parameters() if p.requires_grad], LEARNING_RATE)
    data = _tensors(train)
    judging = _tensors(validation)
    best, log = copy.deepcopy(gate.state_dict()), []
    for epoch in range(epochs):
        for rows in torch.randperm(len(data[0])).split(BATCH_ROWS):
            optimizer.zero_grad()
            loss(gate(data[0][rows]), data[1][rows], train.top_k).backward()
            optimizer.step()
        with torch.no_grad():
            found = float(loss(gate(judging[0]), judging[1], train.top_k))
        log.append({"epoch": epoch, "validation_loss": found})
        lowest = min(range(len(log)), key=lambda i: log[i]["validation_loss"])
        if lowest == epoch:
            best = copy.deepcopy(gate.state_dict())
        if progress:
            progress(epoch + 1, epochs)
        if epoch - lowest >= PATIENCE:
            break
    gate.load_state_dict(best)
    return gate, log


def loss(logits_RLE: Tensor, used_RLE: Tensor, top_k: int) -> Tensor:
    """Mean cross-entropy of all experts, and the squared distance of their expected number from K."""
    too_many_RL = logits_RLE.sigmoid().sum(dim=2) - top_k
    return (
        binary_cross_entropy_with_logits(logits_RLE, used_RLE) + CARDINALITY * (too_many_RL**2).mean() / top_k
    )


def _tensors(trace: RoutingTrace) -> tuple[Tensor, Tensor]:
    used = np.concatenate(used_of(trace))
    return torch.from_numpy(windows(trace)), torch.from_numpy(used.astype(np.float32))
