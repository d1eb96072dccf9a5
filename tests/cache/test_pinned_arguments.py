"""Compiled code reads pinned arguments, and does not release arrays that belong to Python."""

import os
import pickle
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest

from dwellmoe.cache.kernel.pinned_arguments import PinnedArguments, reading


class Inner(NamedTuple):
    values: np.ndarray
    scale: float


class Outer(NamedTuple):
    inner: Inner
    counts: np.ndarray


def pinned():
    return PinnedArguments(Outer(Inner(np.arange(4.0), 2.5), np.arange(3)))


def test_what_is_written_through_it_is_seen_by_the_owner():
    outer = Outer(Inner(np.arange(4.0), 2.5), np.arange(3))
    kept = PinnedArguments(outer)
    read = reading(kept.kind)

    def scaled(address):
        found = read(address)
        found.counts[0] += 1
        return found.inner.values.sum() * found.inner.scale

    run = scaled if kept.kind is None else numba.njit(scaled)
    assert [run(kept.address) for _ in range(3)] == [15.0] * 3
    assert outer.counts[0] == 3


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="nothing is written to memory")
def test_no_owner_is_noted():
    # Compiled code takes one from the count of an array's owner when it has read the array; with none noted
    # it takes nothing. The owner is the first word of an array.
    kept = pinned()
    offsets = [0, kept._words.size - _array_bytes(kept)]
    owners = [int(kept._words[offset : offset + 8].view(np.int64)[0]) for offset in offsets]
    assert owners == [0, 0]
    assert kept._words.any()


def _array_bytes(kept) -> int:
    from numba.core.registry import cpu_target

    context: Any = cpu_target.target_context
    return context.get_abi_sizeof(context.get_data_type(kept.kind[1]))


def test_a_copy_is_refused():
    with pytest.raises(TypeError, match="copy would point"):
        pickle.dumps(pinned())
