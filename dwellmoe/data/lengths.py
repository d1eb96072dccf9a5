"""Knows how long prompts and answers are, in a tokenizer's tokens or in words; cuts nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dwellmoe.data.tokenised import token_ids


@dataclass(frozen=True)
class Lengths:
    """Mean, median, 95th percentile and longest of some texts."""

    mean: float
    p50: int
    p95: int
    max: int


def lengths_of(texts: Sequence[str], tokenizer: Any | None = None) -> Lengths:
    """Lengths of at least one text, in tokens without BOS and EOS, or in words if there is no tokenizer."""
    counts = [len(text.split()) for text in texts]
    if tokenizer is not None:
        counts = [len(ids) for ids in token_ids(tokenizer, list(texts))]
    p50, p95 = np.percentile(counts, (50, 95), method="higher")
    return Lengths(float(np.mean(counts)), int(p50), int(p95), max(counts))
