"""Knows how several processes share batches and bring results together; does not know what is measured.

Only Python objects travel, over gloo, once a variant: shares may be unequal or empty, and no GPU is involved.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

Item = TypeVar("Item")
ARRIVAL, PATIENCE = timedelta(minutes=5), timedelta(minutes=60)
"""How long a rank waits for the others to start, and for the slowest one to finish its share. Neither is
needed when one dies: torchrun ends the others, and a rank ends with its torchrun.
"""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a run."""

    number: int = 0
    of: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        return self.number == 0

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This rank's items, each with its place among all."""
        return list(enumerate(items))[self.number :: self.of]

    def gather(self, results: list[tuple[int, Item]]) -> list[Item]:
        """On the first rank the results of all in the order of their places, on the others nothing."""
        parts: list = [None] * self.of if self.first else []
        if self.group is None:
            parts = [results]
        else:
            dist.gather_object(results, parts if self.first else None, dst=0, group=self.group)
        return [result for _, result in sorted((pair for part in parts for pair in part), key=lambda p: p[0])]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, or a single one. They part at the end, whoever joined them first
    (accelerate may have, as options were read): gloo's threads can abort a process that ends with them.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=ARRIVAL)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        dist.destroy_process_group()
