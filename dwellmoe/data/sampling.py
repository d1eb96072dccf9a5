"""Knows how a seed draws the same examples again; does not know what they are."""

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def seeded_sample(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` of the items, drawn by `seed`, none twice, in their old order; None keeps all."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[position] for position in chosen]
