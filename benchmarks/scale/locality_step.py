"""A training step on random tokens: language-model and locality loss, backward pass, AdamW."""

from collections.abc import Callable
from typing import Any

import torch

from dwellmoe.locality.loss import LocalityLoss


def locality_step(model: Any, rows: int, tokens: int, vocabulary: int) -> Callable[[], None]:
    """The step of a model whose trainable weights are marked; each call draws its tokens anew."""
    locality = LocalityLoss(model, "cache_miss", weight=0.5)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)

    def step() -> None:
        ids = torch.randint(vocabulary, (rows, tokens))
        with locality:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            (loss + locality({"input_ids": ids})).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
