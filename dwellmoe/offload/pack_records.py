"""Writes the records of a packed model, several experts at a time, and notes which are done."""

import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.files import replacing, writing
from dwellmoe.offload.conversion import ExpertReader
from dwellmoe.offload.io.memory import HostMemory
from dwellmoe.offload.io.packed_index import checksum_of
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.pack_plan import LayerPlan, PackPlan


class Journal:
    """The file that notes which experts are done: a line with what is packed, then one an expert."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if path.exists() else []
        self.identity = lines[0] if lines else ""
        entries = [line.split() for line in lines[1:]]
        self.checksums = {
            int(entry[0]): entry[1] for entry in entries if len(entry) == 2 and entry[0].isdecimal()
        }
        """By flat id. Of a run that ended in the middle of a line some may be wrong."""
        self._lock = threading.Lock()

    def begin(self, identity: str) -> None:
        """Begins the file, unless it is of an earlier run."""
        if not self.identity:
            with replacing(self.path) as file:
                file.write(f"{identity}\n".encode())

    def add(self, flat_id: int, found: str) -> None:
        """Notes a record whose bytes are written."""
        with self._lock:
            self.checksums[flat_id] = found
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{flat_id} {found}\n")


def write_records(plan: PackPlan, paths: Sequence[Path], journal: Journal, workers: int) -> None:
    """Writes the records that are not there yet, several at a time."""
    with ExitStack() as stack:
        storage = stack.enter_context(closing(Storage(plan.weights.shards.paths)))
        open_files = (_record_file(path, each) for path, each in zip(paths, plan.layers, strict=True))
        files = [
            RecordFile(path, stack.enter_context(file)) for path, file in zip(paths, open_files, strict=True)
        ]
        stack.enter_context(_torch_threads(workers))
        bar = stack.enter_context(tqdm(total=len(plan.weights.pieces), desc="experts", unit="expert"))
        experts = iter([(each, expert) for each in plan.layers for expert in range(each.layer.num_experts)])
        lock, stopped = threading.Lock(), threading.Event()

        def take() -> tuple[LayerPlan, int] | None:
            with lock:
                return None if stopped.is_set() else next(experts, None)

        def pack_some() -> None:
            writer = _RecordWriter(plan, storage, files, journal)
            while (taken := take()) is not None:
                writer.write(*taken)
                with lock:
                    bar.update()

        with ThreadPoolExecutor(workers) as pool:
            try:
                for future in as_completed([pool.submit(pack_some) for _ in range(workers)]):
                    future.result()
            finally:
                stopped.set()
        for file in files:
            with writing(file.path):
                os.fsync(file.number)


@contextmanager
def _torch_threads(workers: int) -> Iterator[None]:
    """Has torch compute with so many threads that all workers together use each processor once."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _record_file(path: Path, plan: LayerPlan) -> Iterator[int]:
    """The open file of a layer's records, of its final size; it keeps what an earlier run wrote to it."""
    with writing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with writing(path):
            os.ftruncate(file, plan.file_bytes)
            _write_at(file, memoryview(plan.header), 0)
        yield file
    finally:
        os.close(file)


def _write_at(file: int, content: memoryview, offset: int) -> None:
    while content:
        done = os.pwrite(file, content, offset)
        content, offset = content[done:], offset + done


class RecordFile(NamedTuple):
    """An open file of records."""

    path: Path
    number: int


class _RecordWriter:
    """Converts and writes one expert at a time; each thread has its own."""

    def __init__(
        self, plan: PackPlan, storage: Storage, files: Sequence[RecordFile], journal: Journal
    ) -> None:
        layers = [each.layer for each in plan.layers]
        self.files, self.journal = files, journal
        self.reader = ExpertReader(plan.weights, layers, storage)
        self.memory = HostMemory(max(each.layout.nbytes for each in plan.layers))
        self.firsts = [0, *itertools.accumulate(layer.num_experts for layer in layers)]

    def write(self, plan: LayerPlan, expert: int) -> None:
        """Writes a record, unless the file has it. Raises UserError."""
        file, flat_id = self.files[plan.layer.index], self.firsts[plan.layer.index] + expert
        offset, before = len(plan.header) + expert * plan.stride, self.journal.checksums.get(flat_id)
        if before and checksum_of([os.pread(file.number, plan.layout.nbytes, offset)]) == before:
            return
        record = self._convert(plan, expert)
        with writing(file.path):
            _write_at(file.number, record.data, offset)
            self.journal.add(flat_id, checksum_of([record]))

    def _convert(self, plan: LayerPlan, expert: int) -> np.ndarray:
        """The bytes of a record. Raises UserError for weights that are not finite."""
        record = self.memory.tensor[: plan.layout.nbytes].zero_()
        for name, tensors in self.reader.read(plan.layer.index, expert).items():
            found = _fields(plan, expert, name, tensors)
            for field, target in plan.layout.stored(record, name).items():
                target.copy_(found[field])
        return self.memory.bytes[: plan.layout.nbytes]


def _fields(plan: LayerPlan, expert: int, name: str, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors that hold one parameter in its record."""
    if not isinstance(plan.layout.matrices[name].format, PlainWeights):
        return plan.conversion.matrix(expert, name, tensors)
    plan.conversion.check_finite(expert, name, tensors[""])
    return {"weight": tensors[""]}
