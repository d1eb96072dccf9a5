"""Checks a packed model against the checksums that were taken when it was packed. Without torch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dwellmoe.errors import UserError
from dwellmoe.offload.io.fingerprint import fingerprint
from dwellmoe.offload.io.packed_index import AGAIN, INDEX, PackedIndex, PackedLayer, checksum_of, damage_at
from dwellmoe.offload.io.shards import Shards, StoredTensor, chunks_of


class Check(NamedTuple):
    """Bytes that have a checksum."""

    what: str
    tensor: StoredTensor | None
    """None: it is missing."""
    checksum: str


def own_experts(shards: Shards, layers: Sequence[PackedLayer]) -> str:
    """Fingerprint of the records of a packed model."""
    records = {layer.records: shards.tensors[layer.records] for layer in layers}
    return fingerprint(shards._replace(tensors=records))


def check_own_experts(shards: Shards, index: PackedIndex) -> None:
    """Raises UserError where a sample of the records is not what was packed; names the first such record."""
    if own_experts(shards, index.layers) == index.own_experts:
        return
    faults = damage(shards, [*record_checks(shards, index)])
    raise UserError(faults[0] if faults else f"{shards.paths[0].parent / INDEX}: of other records: {AGAIN}")


def record_checks(shards: Shards, index: PackedIndex) -> Iterator[Check]:
    """A check of each record."""
    for number, layer in enumerate(index.layers):
        for expert, expected in enumerate(layer.checksums):
            yield Check(f"expert {expert} of MoE layer {number}", _record(shards, layer, expert), expected)


def other_checks(shards: Shards, index: PackedIndex) -> Iterator[Check]:
    """A check of each tensor beside the records."""
    for name, expected in index.others.items():
        yield Check(f"tensor '{name}'", shards.tensors.get(name), expected)


def damage(
    shards: Shards,
    checks: Sequence[Check],
    workers: int | None = None,
    done: Callable[[], object] | None = None,
) -> list[str]:
    """What is not as it was packed, each with its file and offset; `done` is called after each check."""

    def fault_of(check: Check) -> str:
        found = _fault(shards, check)
        if done:
            done()
        return found

    with ThreadPoolExecutor(workers) as pool:
        return [found for found in pool.map(fault_of, checks) if found]


def _fault(shards: Shards, check: Check) -> str:
    """What is wrong; empty if nothing is."""
    tensor = check.tensor
    if tensor is None:
        return f"{shards.paths[0].parent}: {check.what} is missing: {AGAIN}"
    if checksum_of(chunks_of(shards.paths[tensor.shard], tensor)) == check.checksum:
        return ""
    return f"{shards.paths[tensor.shard]}: {check.what}: {damage_at(tensor.offset, tensor.nbytes)}"


def _record(shards: Shards, layer: PackedLayer, expert: int) -> StoredTensor | None:
    """One record as a tensor of its own."""
    tensor = shards.tensors.get(layer.records)
    if tensor is None or tensor.nbytes < layer.record_bytes * len(layer.checksums):
        return None
    stride = tensor.nbytes // len(layer.checksums)
    return tensor._replace(offset=tensor.offset + expert * stride, nbytes=layer.record_bytes)
