"""The running forward pass: prefill or decode, the requests its tokens belong to, and how long passes take.

Letters: B rows, T tokens of a row.
"""

from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.offload.growing_cache import grow_in_place
from dwellmoe.offload.statistics import Statistics
from dwellmoe.routing.scoutgate import PADDING


class ForwardPass:
    """Follows a model's forward passes by hooks on it.

    A pass without cached keys and values begins a request in every row. A pass that begins requests, or has
    several tokens a row, is prefill; every other pass is decode.
    """

    def __init__(self, model: nn.Module, statistics: Statistics) -> None:
        self.statistics = statistics
        self.prefill = True
        self.fresh = True
        """Whether this pass begins a request in every row."""
        self.requests = np.zeros(0, np.int32)
        """[B * T]: the request of each token of this pass."""
        self.ids_BT: Tensor | None = None
        """Token ids with PADDING for padding, kept while there are listeners; None for a model that was given
        embeddings.
        """
        self.listeners: list[Callable[[ForwardPass], None]] = []
        """Called when a pass begins."""
        self.closing = ExitStack()
        """Context managers that `close` leaves."""
        self._first_request = 0
        self._next_request = 0
        self._began = self._prompt_seconds = 0.0
        self._handles = [
            model.register_forward_pre_hook(self._begin, with_kwargs=True),
            model.register_forward_hook(self._end, with_kwargs=True),
        ]

    def close(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        self.closing.close()

    def _begin(self, _model: nn.Module, inputs: tuple, options: dict[str, Any]) -> None:
        tokens = options.get("input_ids", inputs[0] if inputs else None)
        tokens = options["inputs_embeds"] if tokens is None else tokens
        rows, length = tokens.shape[:2]
        cached = options.get("past_key_values")
        fresh = cached is None or cached.get_seq_length() == 0
        if fresh:
            self._first_request = self._next_request
            self._next_request += rows
            self._prompt_seconds = 0.0
        elif not self.prefill and length > 1:
            self._prompt_seconds = 0.0
        self._close_prompt(fresh or length > 1)
        self.prefill = fresh or length > 1
        if not self.prefill:
            grow_in_place(cached)
        self.requests = np.repeat(np.arange(rows, dtype=np.int32) + self._first_request, length)
        self.fresh = fresh
        if self.listeners:
            self.ids_BT = _ids(tokens, options.get("attention_mask"))
            for listener in self.listeners:
                listener(self)
        self._began = perf_counter()

    def _close_prompt(self, prefill: bool) -> None:
        """Counts the time to the first token, which is known when the first decode pass begins."""
        if self.prefill and not prefill and self._prompt_seconds:
            self.statistics.first_token_seconds.append(self._prompt_seconds)

    def _end(self, _model: nn.Module, _inputs: tuple, _options: dict, _output: Any) -> None:
        seconds = perf_counter() - self._began
        counts = self.statistics.phase(self.prefill)
        counts.tokens += len(self.requests)
        counts.passes += 1
        counts.seconds += seconds
        if self.prefill:
            self._prompt_seconds += seconds


def _ids(tokens: Tensor, mask: Tensor | None) -> Tensor | None:
    """int64 [B, T] on the host."""
    if tokens.is_floating_point():
        return None
    ids_BT = tokens.to("cpu", torch.int64)
    if mask is None or mask.dim() != 2:
        return ids_BT
    return ids_BT.masked_fill(mask[:, -ids_BT.shape[1] :].cpu() == 0, PADDING)
