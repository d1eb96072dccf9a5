"""Knows how several pools become one weighted, shuffled mix; does not know where the pools come from."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from dwellmoe.data.sampling import seeded_sample
from dwellmoe.data.task import Task
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

Item = TypeVar("Item")


def draw(task: Task, split: str, pools: Mapping[str, Sequence[Item]], seed: int) -> list[Item]:
    """The largest mix that keeps the task's weights and takes nothing twice, shuffled by `seed`."""
    scale = min(len(pool) / task.mix[name] for name, pool in pools.items())
    drawn = {name: seeded_sample(pool, int(scale * task.mix[name]), seed) for name, pool in pools.items()}
    shares = ", ".join(f"{len(items)} of {len(pools[name])} {name}" for name, items in drawn.items())
    warn_once(f"{task.name}, {split}: {shares}")
    mixed = [item for items in drawn.values() for item in items]
    random.Random(seed).shuffle(mixed)
    return mixed


def check_missing(task: Task, split: str, reasons: Mapping[str, str], available_only: bool) -> None:
    """Says which members are left out. Raises UserError if that is not wanted, or if none is left."""
    if not reasons:
        return
    names = ", ".join(reasons)
    if available_only and len(reasons) < len(task.mix):
        warn_once(f"{task.name}, {split}: left out, because out of reach: {names}")
        return
    remedy = "" if available_only else "; --mix_available_only goes without them"
    raise UserError(
        f"{task.name}, {split}: out of reach: {names}{remedy} (first reason: {next(iter(reasons.values()))})"
    )
