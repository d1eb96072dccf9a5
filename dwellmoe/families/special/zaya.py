"""ZAYA: the router scores one class more than there are experts, "skip the block"."""

from dwellmoe.families.base import MoeFamily, RouterTriple


def _read(output: tuple, top_k: int) -> RouterTriple:
    # A token that skips is returned as expert 0 with weight 0.
    return output[0][..., :-1], output[1], output[2]


FAMILY = MoeFamily(model_types=("zaya",), read=_read)
