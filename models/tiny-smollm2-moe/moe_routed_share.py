"""Runs a MoE without its routed experts or with random ones, to measure how much they matter.

Letters: T tokens, E routed experts, K chosen experts a token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Change = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From a router's output (logits [T, E], weights [T, K], indices [T, K]) to what takes its place."""


@contextmanager
def changed_routing(moe: Any, change: Change) -> Iterator[None]:
    """Within the block every router's output is changed."""
    routers = [decoder.mlp.gate for decoder in moe.model.layers]
    hooks = [router.register_forward_hook(lambda _, __, output: change(*output)) for router in routers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_experts(logits_TE: Tensor, weights_TK: Tensor, indices_TK: Tensor):
    """The shared expert alone."""
    return logits_TE, torch.zeros_like(weights_TK), indices_TK


def random_experts(seed: int) -> Change:
    """The router's weights, on K experts drawn anew for every token and layer."""
    draw = torch.Generator().manual_seed(seed)

    def change(logits_TE: Tensor, weights_TK: Tensor, indices_TK: Tensor):
        drawn_TE = torch.rand(logits_TE.shape, generator=draw)
        return logits_TE, weights_TK, drawn_TE.topk(indices_TK.shape[1]).indices

    return change
