"""Turns router outputs into a routing trace.

Letters: B rows of a batch, T tokens of a row (padding included), P prompt tokens of a row, L MoE layers,
E experts, K chosen experts a token, S recorded token steps.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwellmoe.cache.trace import RoutingTrace, unsigned_ids
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.routing.router_tap import RouterOutput, router_order

Pieces = dict[str, np.ndarray]
ArrayLike = np.ndarray | Tensor | Sequence[Any]


class TraceRecorder:
    """An observer for `RouterTap` that keeps each forward pass on the CPU until its batch is described.

    Run one batch inside the tap, a teacher-forced forward pass or a whole `generate`, then call `add` or
    `add_generated`, which drops padding and lines the rows up, request after request, each in time order.
    `trace` hands over all batches since the last `trace`. Raises UserError when layers differ in E or K.
    """

    def __init__(self, moe_layers: Iterable[MoeLayer], gate_probs: bool = False):
        self.moe_layers = list(moe_layers)
        self._gate_probs = gate_probs
        self._pass: dict[int, dict[str, Tensor]] = {}  # of the current forward pass, by layer
        self._passes: list[Pieces] = []  # of the current batch, [L, B * T, K or E]
        self._batches: list[Pieces] = []  # described and free of padding, [S, ...]
        sizes = {(layer.num_experts, layer.top_k) for layer in self.moe_layers}
        if len(sizes) != 1:
            raise UserError(f"a trace needs one (experts, chosen) for all layers, got {sorted(sizes)}")

    def __call__(self, output: RouterOutput) -> None:
        """Takes the output of one router."""
        seen = {"weights": output.weights_TK.detach(), "experts": output.indices_TK.detach()}
        if self._gate_probs:
            seen["gate_probs"] = output.logits_TE.detach()
        self._pass[output.layer.index] = seen
        if len(self._pass) == len(self.moe_layers):
            self._passes.append(self._finish_pass())
            self._pass.clear()

    def _finish_pass(self) -> Pieces:
        """The layers of a forward pass in router order and in the trace's types, `[L, B * T, ...]`."""
        weights, experts = router_order(self._stacked("weights"), self._stacked("experts"))
        # With experts in a cache, the id after the last expert stands for an empty slot.
        experts = experts.masked_fill(experts >= self.moe_layers[0].num_experts, -1)
        pieces = {"experts": experts.to(torch.int16), "weights": weights.to(torch.float16)}
        if self._gate_probs:
            pieces["gate_probs"] = self._stacked("gate_probs").float().softmax(dim=-1).to(torch.float16)
        return {name: piece.cpu().numpy() for name, piece in pieces.items()}

    def _stacked(self, name: str) -> Tensor:
        parts = [self._pass[layer.index][name] for layer in self.moe_layers]
        return torch.stack([part.to(parts[0].device) for part in parts])

    def add(
        self,
        requests: ArrayLike,
        valid_BT: ArrayLike,
        decode_BT: ArrayLike,
        token_ids_BT: ArrayLike | None = None,
    ) -> None:
        """Describes the tokens that ran since the last call.

        `requests` numbers the request of each row [B] or, for packed rows, of each token [B, T]; `valid_BT`
        is the attention mask (left or right padding); `decode_BT` is true where a token counts as decoded
        (teacher forcing: the answer). Raises ValueError when the masks do not cover the tokens that ran.
        """
        valid = _array(valid_BT).astype(bool)
        names = ("experts", "weights", "gate_probs") if self._gate_probs else ("experts", "weights")
        batch = {name: self._rows(name, valid.shape)[valid] for name in names}
        request = np.broadcast_to(_array(requests).reshape(len(valid), -1), valid.shape)
        batch["request"] = request[valid].astype(np.int32)
        batch["phase"] = np.broadcast_to(_array(decode_BT), valid.shape)[valid].astype(bool).astype(np.uint8)
        if token_ids_BT is not None:
            batch["token_ids"] = _array(token_ids_BT)[valid].astype(np.int32)
        self._batches.append(batch)
        self._passes.clear()

    def add_generated(
        self, requests: ArrayLike, prompt_mask_BP: ArrayLike, sequences: ArrayLike, lengths: ArrayLike
    ) -> None:
        """Describes one `generate` call: prompt tokens are prefill, each later forward pass a decode step.

        `sequences` [B, P + new] is what `generate` returned and `lengths` [B] the number of tokens each row
        generated (see `generated_lengths`). A row's last token is not recorded: had the row been alone, it
        would never have run through the model.
        """
        prompt = _array(prompt_mask_BP).astype(bool)
        rows, prompt_tokens = prompt.shape
        steps = self._tokens_seen() // rows - prompt_tokens
        answer = np.arange(steps) < (_array(lengths) - 1)[:, None]
        decode = np.arange(prompt_tokens + steps) >= prompt_tokens
        tokens = _array(sequences)[:, : prompt_tokens + steps]
        self.add(requests, np.concatenate([prompt, answer], axis=1), decode, tokens)

    def trace(self, model: str = "", source: str = "", expert_bytes: Sequence[int] = ()) -> RoutingTrace:
        """Everything described since the last call, as one trace; after it the recorder is empty."""
        batches, self._batches = self._batches, []
        names = set.intersection(*(set(batch) for batch in batches)) if batches else set()
        if not names:
            raise UserError("nothing was recorded: run the model inside the tap and describe the batch first")
        arrays: dict[str, Any] = {name: np.concatenate([batch[name] for batch in batches]) for name in names}
        return RoutingTrace(
            **arrays,
            num_experts=self.moe_layers[0].num_experts,
            layer_ids=tuple(layer.layer_id for layer in self.moe_layers),
            expert_bytes=tuple(expert_bytes),
            model=model,
            source=source,
        )

    def _tokens_seen(self) -> int:
        """Tokens of all rows, padding included, that ran since a batch was last described."""
        return sum(piece["experts"].shape[1] for piece in self._passes)

    def _rows(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor of all forward passes of the batch, joined along time: `[B, T, L, ...]`."""
        if self._tokens_seen() != shape[0] * shape[1]:
            raise ValueError(
                f"{self._tokens_seen()} tokens ran inside the tap: the masks have shape {list(shape)}"
            )
        pieces = [piece[name] for piece in self._passes]
        pieces = [piece.reshape(len(piece), shape[0], -1, piece.shape[-1]) for piece in pieces]
        rows = np.concatenate(pieces, axis=2).transpose(1, 2, 0, 3)
        return unsigned_ids(rows) if name == "experts" else rows


def generated_lengths(sequences: ArrayLike, prompt_tokens: int, eos_token_ids: Iterable[int]) -> np.ndarray:
    """Tokens each row of `sequences` [B, P + new] generated, an end token included: `[B]`."""
    ended = np.isin(_array(sequences)[:, prompt_tokens:], list(eos_token_ids))
    return np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, ended.shape[1])


def _array(values: ArrayLike) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
