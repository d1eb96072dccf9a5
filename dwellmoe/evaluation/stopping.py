"""Knows when a row of generated tokens has said one of a task's stop words; does not know why it stops there.

Letters: B rows, T tokens so far (prompt included).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteria

SPARE_TOKENS = 8
"""Decoded beside the tokens a stop word can span, since a tokenizer may treat the first one apart."""


class StopWords(StoppingCriteria):
    """Ends each row with the token that completes a stop word, and remembers where that was."""

    def __init__(self, tokenizer: Any, words: Sequence[str], prompt_tokens: int, rows: int):
        self._tokenizer = tokenizer
        self._words = tuple(words)
        self._prompt_tokens = prompt_tokens
        self._window = max(map(len, self._words), default=0) + SPARE_TOKENS
        self.lengths = np.full(rows, np.iinfo(np.int64).max)
        """Generated tokens a row has up to its stop word [B]; huge where it said none."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:  # type: ignore[override]
        """bool [B]: the rows that have ended."""
        generated = input_ids.shape[1] - self._prompt_tokens
        tails = input_ids[:, -min(self._window, generated) :].tolist()
        for row, text in enumerate(self._tokenizer.batch_decode(tails)):
            if self.lengths[row] > generated and any(word in text for word in self._words):
                self.lengths[row] = generated
        return torch.from_numpy(self.lengths <= generated).to(input_ids.device)


def before_stop(text: str, words: Sequence[str]) -> str:
    """The text up to the first of the words."""
    return text[: min((place for word in words if (place := text.find(word)) >= 0), default=len(text))]
