"""Knows ScoutGate: two towers that predict from the last token ids which experts of every layer a token uses.

Context: the model's own embeddings, frozen, of the last WINDOW tokens, the running one included, each
projected and normalised, joined with the layer's embedding, compressed into the space in which every (layer,
expert) has a vector; p = sigmoid(dot + bias). Trained by binary cross-entropy and a cardinality term that
pulls sum_e p towards K. Letters: R rows (tokens), W window, D embedding, L layers, E experts a layer.
"""

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from errors import UserError
from expert_cache.prediction import used_of
from expert_cache.sweep import Progress
from expert_cache.trace import DECODE, RoutingTrace

WINDOW, PROJECTED, LAYER, JOINED, SPACE = 8, 128, 64, 256, 64
BATCH_ROWS, LEARNING_RATE, PATIENCE, CARDINALITY = 128, 2e-3, 2, 0.01
PADDING = -1


class ScoutGate(nn.Module):
    """Token ids [R, W] (PADDING before a request's begin) -> logits [R, L, E]."""

    def __init__(self, embedding: Tensor, layers: int, experts: int) -> None:
        super().__init__()
        self.register_buffer("embedding", torch.cat([embedding.float(), torch.zeros(1, embedding.shape[1])]))
        self.project = nn.Linear(embedding.shape[1], PROJECTED)
        self.normalise = nn.LayerNorm(PROJECTED)
        self.layer = nn.Parameter(torch.randn(layers, LAYER) * 0.1)
        self.context = nn.Sequential(
            nn.Linear(WINDOW * PROJECTED + LAYER, JOINED), nn.SiLU(), nn.Linear(JOINED, SPACE)
        )
        self.expert = nn.Parameter(torch.randn(layers, experts, SPACE) * 0.1)
        self.bias = nn.Parameter(torch.zeros(layers, experts))

    def forward(self, ids_RW: Tensor) -> Tensor:
        seen = self.normalise(self.project(self.embedding[ids_RW])).flatten(1)  # type: ignore[index]
        rows, layers = len(ids_RW), len(self.layer)
        parts = [seen[:, None].expand(rows, layers, -1), self.layer.expand(rows, layers, -1)]
        context_RLS = self.context(torch.cat(parts, dim=2))
        return torch.einsum("rls,les->rle", context_RLS, self.expert) + self.bias


def windows(trace: RoutingTrace) -> np.ndarray:
    """int64 [T, W]: the last token ids of every decoded token, the prompt's too; as `used_of` orders them."""
    if trace.token_ids is None:
        raise UserError("ScoutGate needs a trace with token_ids")
    found = []
    for name in dict.fromkeys(trace.request[trace.phase == DECODE].tolist()):
        rows = np.flatnonzero(trace.request == name)
        ids = np.concatenate([np.full(WINDOW - 1, PADDING), trace.token_ids[rows]])
        of_all = np.lib.stride_tricks.sliding_window_view(ids, WINDOW)
        found.append(of_all[trace.phase[rows] == DECODE])
    return np.concatenate(found).astype(np.int64)


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
    data, judging = _tensors(train), _tensors(validation)
    best, log = copy.deepcopy(gate.state_dict()), []
    for epoch in range(epochs):
        for rows in torch.randperm(len(data[0])).split(BATCH_ROWS):
            optimizer.zero_grad()
            loss(gate(data[0][rows]), data[1][rows], train.top_k).backward()
            optimizer.step()
        with torch.no_grad():
            found = float(loss(gate(judging[0]), judging[1], train.top_k))
        log.append({"epoch": epoch, "validation_loss": found})
        lowest = min(range(len(log)), key=lambda at: log[at]["validation_loss"])
        if lowest == epoch:
            best = copy.deepcopy(gate.state_dict())
        if progress:
            progress(epoch + 1, epochs)
        if epoch - lowest >= PATIENCE:
            break
    gate.load_state_dict(best)
    return gate, log


def loss(logits_RLE: Tensor, used_RLE: Tensor, top_k: int) -> Tensor:
    """Cross-entropy an expert, and how far the expected number of experts is from K, squared."""
    too_many_RL = logits_RLE.sigmoid().sum(dim=2) - top_k
    return (
        binary_cross_entropy_with_logits(logits_RLE, used_RLE) + CARDINALITY * (too_many_RL**2).mean() / top_k
    )


def predict_scoutgate(gate: ScoutGate, trace: RoutingTrace) -> np.ndarray:
    """float64 [T, L, E] for the decoded tokens of a trace."""
    with torch.inference_mode():
        parts = torch.from_numpy(windows(trace)).split(1024)
        return torch.cat([gate(part).sigmoid() for part in parts]).double().numpy()


def _tensors(trace: RoutingTrace) -> tuple[Tensor, Tensor]:
    used = np.concatenate(used_of(trace))
    return torch.from_numpy(windows(trace)), torch.from_numpy(used.astype(np.float32))
