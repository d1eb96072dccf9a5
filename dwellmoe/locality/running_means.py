"""Means of what a training step says, until someone reads them; does not know what they are of."""

from collections import defaultdict
from typing import Any

import torch


class RunningMeans:
    """Weighted means of scalars since the last reading; keeps tensors, so that no step waits for a device."""

    def __init__(self):
        self._sums: dict[str, Any] = defaultdict(float)
        self._weights: dict[str, Any] = defaultdict(float)

    def add(self, weight: Any = 1.0, **values: Any) -> None:
        for name, value in values.items():
            self._sums[name] = (
                self._sums[name] + (value.detach() if torch.is_tensor(value) else value) * weight
            )
            self._weights[name] = self._weights[name] + weight

    def read(self, accelerator) -> dict[str, float]:
        """The means over all ranks; starts anew. Every rank must call it."""
        names = sorted(self._sums)
        totals = torch.tensor(
            [[float(self._sums[n]), float(self._weights[n])] for n in names], dtype=torch.float64
        )
        self._sums.clear()
        self._weights.clear()
        if not names:
            return {}
        totals = accelerator.reduce(totals.float().to(accelerator.device), "sum")
        return {name: (total / weight).item() for name, (total, weight) in zip(names, totals, strict=True)}
