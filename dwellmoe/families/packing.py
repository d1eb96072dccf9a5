"""Models whose layers do not keep the packed requests of a row apart."""

from typing import Any

import torch
from torch import Tensor

LENGTH = 12
TOLERANCE = 0.02
"""Of the largest logit: rounding in bfloat16 stays below it, another request before it does not."""


@torch.no_grad()
def mixes_packed_requests(model: Any) -> bool:
    """Whether a request gets other logits after another request in its row.

    So it is with linear attention (Qwen3.5-MoE), whose state runs through a row, and in transformers 5.23
    where a model makes its attention mask without the positions (GPT-OSS, AFMoE). Runs two short rows.
    """
    trained = model.training
    model.eval()
    try:
        first, second = (_logits_after(model, seed) for seed in (0, 1))
    finally:
        model.train(trained)
    return bool((first - second).abs().max() > TOLERANCE * first.abs().max())


def _logits_after(model: Any, seed: int) -> Tensor:
    """Logits [T, V] of the same request, packed behind a request that the seed draws."""
    vocabulary = model.config.get_text_config().vocab_size
    random = torch.Generator().manual_seed(seed)
    before = torch.randint(0, vocabulary, (LENGTH,), generator=random)
    tokens_1T = torch.cat([before, torch.arange(LENGTH) % vocabulary])[None].to(model.device)
    positions_1T = torch.arange(LENGTH, device=model.device).repeat(2)[None]
    output = model(input_ids=tokens_1T, position_ids=positions_1T, use_cache=False)
    return output.logits[0, LENGTH:].float()
