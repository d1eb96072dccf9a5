"""Knows how long prefill and decoding took on this machine; does not know what was computed.

Letters: B rows, T tokens so far (prompt included).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import StoppingCriteria

MEASURED = "wall clock of generate() on this machine, as the model was loaded here, routing recorded"


@dataclass(frozen=True)
class Timing:
    """Of one batch: prompt tokens up to the first new one, and all tokens after that one."""

    prefill_tokens: int
    prefill_seconds: float
    decoded_tokens: int
    decode_seconds: float
    rows: int


class Clock(StoppingCriteria):
    """Stops nothing; generate() asks it after every token, which is when it looks at the time."""

    def __init__(self):
        self._moments = [time.perf_counter()]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:  # type: ignore[override]
        """bool [B]: False for every row."""
        if input_ids.device.type != "cpu":
            torch.accelerator.synchronize()
        self._moments.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def timing(self, prefill_tokens: int, lengths: Sequence[int]) -> Timing:
        """`prefill_tokens` of all rows without padding; `lengths`: tokens each row generated."""
        start, first, *_ = [*self._moments, self._moments[-1]]
        decoded = sum(lengths) - len(lengths)
        return Timing(prefill_tokens, first - start, decoded, self._moments[-1] - first, len(lengths))


def speed_row(variant: str, timings: Sequence[Timing]) -> dict:
    """Tokens a second of all batches but the first, which also warms the machine up, unless it is the only
    one. None where nothing was timed.
    """
    timed = timings[1:] or timings
    prefill, decode = sum(t.prefill_seconds for t in timed), sum(t.decode_seconds for t in timed)
    return {
        "variant": variant,
        "prefill_tokens_per_second": sum(t.prefill_tokens for t in timed) / prefill if prefill else None,
        "decode_tokens_per_second": sum(t.decoded_tokens for t in timed) / decode if decode else None,
        "batches_timed": len(timed),
        "rows_together": max((t.rows for t in timed), default=0),
        "warm": len(timings) > 1,
        "convention": MEASURED,
    }
