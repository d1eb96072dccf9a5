"""Gemma 4: the router stands in the decoder layer and returns probabilities."""

import torch

from dwellmoe.families.base import MoeFamily, RouterTriple


def _read(output: tuple, top_k: int) -> RouterTriple:
    # The softmax is undone but for one constant a token, which no softmax of it can see.
    floor = torch.finfo(output[0].dtype).tiny
    return output[0].clamp_min(floor).log(), output[1], output[2]


FAMILY = MoeFamily(model_types=("gemma4", "gemma4_text"), shared=("mlp",), read=_read)
