"""Shares batches among the processes of a run and gathers their results on the first one.

Only Python objects are sent, over gloo, once a variant: shares may be unequal or empty. No GPU is involved.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

Item = TypeVar("Item")
START_TIMEOUT = timedelta(minutes=5)
"""How long a rank waits for the others to start."""
GATHER_TIMEOUT = timedelta(minutes=60)
"""How long a rank waits for the slowest one. A rank that dies is not waited for: torchrun ends the others."""


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a run."""

    rank: int = 0
    world_size: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This rank's items, each with its index among all."""
        return list(enumerate(items))[self.rank :: self.world_size]

    def gather(self, results: list[tuple[int, Item]]) -> list[Item]:
        """On the first rank the results of all ranks in the order of their indices, on the others nothing."""
        parts: list = [None] * self.world_size if self.first else []
        if self.group is None:
            parts = [results]
        else:
            dist.gather_object(results, parts if self.first else None, dst=0, group=self.group)
        return [result for _, result in sorted((pair for part in parts for pair in part), key=lambda p: p[0])]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The ranks that torchrun started, or a single one.

    The process group is destroyed at the end, even if accelerate opened it earlier: a process that ends with
    gloo's threads running can abort.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=START_TIMEOUT)
    try:
        group = dist.new_group(backend="gloo", timeout=GATHER_TIMEOUT)
        yield Ranks(dist.get_rank(), dist.get_world_size(), group)
    finally:
        dist.destroy_process_group()
