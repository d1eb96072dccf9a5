"""ScoutGate: two towers that predict from the last token ids which experts of every layer a token uses.

Context: the model's own embeddings, frozen, of the last WINDOW tokens, the current one included, each
projected and normalised, joined with the layer's embedding, compressed into the space in which every (layer,
expert) has a vector; p = sigmoid(dot + bias).

Letters: R rows (tokens), W window, D embedding, L layers, E experts a layer.
"""

import os

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.cache.learned.weights import load_weights, save_weights
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError

WINDOW, PROJECTED, LAYER, JOINED, SPACE = 8, 128, 64, 256, 64
PADDING = -1
NAME, LAYOUT = "scoutgate", f"ids{WINDOW}-{PROJECTED}-{LAYER}-{JOINED}-{SPACE}"


class ScoutGate(nn.Module):
    """Token ids [R, W] (PADDING before a request's first token) -> logits [R, L, E]."""

    def __init__(self, embedding: Tensor, layers: int, experts: int) -> None:
        super().__init__()
        self.register_buffer("embedding", embedding, persistent=False)  # the model's own: no copy
        self.project = nn.Linear(embedding.shape[1], PROJECTED)
        self.normalise = nn.LayerNorm(PROJECTED)
        self.layer = nn.Parameter(torch.randn(layers, LAYER) * 0.1)
        self.context = nn.Sequential(
            nn.Linear(WINDOW * PROJECTED + LAYER, JOINED), nn.SiLU(), nn.Linear(JOINED, SPACE)
        )
        self.expert = nn.Parameter(torch.randn(layers, experts, SPACE) * 0.1)
        self.bias = nn.Parameter(torch.zeros(layers, experts))

    def forward(self, ids_RW: Tensor) -> Tensor:
        vectors_RWD = self.embedding[ids_RW.clamp(min=0)].float()  # type: ignore[index]
        seen = self.normalise(self.project(vectors_RWD * (ids_RW != PADDING)[..., None])).flatten(1)
        rows, layers = len(ids_RW), len(self.layer)
        parts = [seen[:, None].expand(rows, layers, -1), self.layer.expand(rows, layers, -1)]
        context_RLS = self.context(torch.cat(parts, dim=2))
        return torch.einsum("rls,les->rle", context_RLS, self.expert) + self.bias


def windows(trace: RoutingTrace) -> np.ndarray:
    """int64 [T, W]: the last token ids up to each decoded token, in the order of `used_of`."""
    if trace.token_ids is None:
        raise UserError("ScoutGate needs a trace with token_ids")
    found = []
    for request in dict.fromkeys(trace.request[trace.phase == DECODE].tolist()):
        rows = np.flatnonzero(trace.request == request)
        ids = np.concatenate([np.full(WINDOW - 1, PADDING), trace.token_ids[rows]])
        of_all = np.lib.stride_tricks.sliding_window_view(ids, WINDOW)
        found.append(of_all[trace.phase[rows] == DECODE])
    return np.concatenate(found).astype(np.int64)


class LastTokens:
    """The windows of the rows that a model runs, pass after pass."""

    def __init__(self) -> None:
        self._seen_RT: Tensor | None = None

    def add(self, ids_BT: Tensor | None, fresh: bool) -> Tensor | None:
        """int64 [B, W]: the windows that end with the last of these ids; `fresh` ids begin new requests.

        None where ids are unknown, and from then on until new requests begin.
        """
        if fresh and ids_BT is not None:
            self._seen_RT = torch.full((len(ids_BT), WINDOW), PADDING)
        if ids_BT is None or self._seen_RT is None or len(ids_BT) != len(self._seen_RT):
            self._seen_RT = None
            return None
        self._seen_RT = torch.cat([self._seen_RT, ids_BT], dim=1)[:, -WINDOW:]
        return self._seen_RT


def predict_scoutgate(gate: ScoutGate, trace: RoutingTrace) -> np.ndarray:
    """float64 [T, L, E] for the decoded tokens of a trace."""
    with torch.inference_mode():
        parts = torch.from_numpy(windows(trace)).split(1024)
        return torch.cat([gate(part).sigmoid() for part in parts]).double().numpy()


def save_scoutgate(gate: ScoutGate, path: str | os.PathLike, model: str) -> None:
    """Writes a trained gate without the embeddings, which are those of `model`."""
    tensors = {name: value.numpy() for name, value in gate.state_dict().items()}
    save_weights(path, NAME, LAYOUT, tensors, {"model": model})


def load_scoutgate(path: str, embedding: Tensor, layers: int, experts: int) -> ScoutGate:
    """The gate of a file, over the embeddings [V, D] of the model it serves. UserError for other shapes."""
    tensors, _ = load_weights(path, NAME, LAYOUT)
    gate = ScoutGate(embedding, layers, experts)
    wanted = {name: tuple(value.shape) for name, value in gate.state_dict().items()}
    found = {name: value.shape for name, value in tensors.items()}
    if found != wanted:
        name = next(name for name in (*wanted, *found) if found.get(name) != wanted.get(name))
        raise UserError(
            f"{path}: ScoutGate of another model: '{name}' is {found.get(name)}, needed {wanted.get(name)}"
        )
    gate.load_state_dict({name: torch.tensor(value) for name, value in tensors.items()})
    return gate.eval().to(embedding.device)
