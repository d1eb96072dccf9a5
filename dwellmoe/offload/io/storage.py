"""Knows how to read bytes of checkpoint files at a place, past the page cache where it can, and how that can
fail; does not know what the bytes are.
"""

import errno
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.errors import UserError
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory, pages

DIRECT, BUFFERED = "direct", "buffered"
REQUEST_BYTES = 4 << 20
ATTEMPTS = 3

PositionedRead = Callable[[int, list, int], int]
"""os.preadv: (file descriptor, [memory], offset) -> bytes read."""


class ReadFault(UserError):
    """Bytes of a file that could not be had, after all attempts."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.what = path, what


class Span(NamedTuple):
    """A part of a shard and the memory it goes to."""

    shard: int
    offset: int
    nbytes: int
    memory: np.ndarray
    """uint8; whole pages around the destination, where direct reads may spill."""
    at: int
    """First byte of the destination in `memory`."""


class Storage:
    """Open shards. Thread-safe; every reader thread has a bounce buffer of its own.

    io    "direct": O_DIRECT, so that no page cache hides the disk or takes memory; where a file system has
          none, buffered reads, and one warning. "buffered": through the page cache
    read  os.preadv, or what a test puts in its place

    A read that fails or is short is repeated; then ReadFault names shard and offset. So it does for a shard
    whose size or time of change is no longer what it was when it was opened.
    """

    def __init__(self, paths: Sequence[Path], io: str = DIRECT, read: PositionedRead = os.preadv) -> None:
        self.paths, self.io, self.read = tuple(paths), io, read
        self._files: list[int] = []
        self._local = threading.local()
        try:
            for path in self.paths:
                self._files.append(self._open(path))
            self._states = [_state(file) for file in self._files]
        except OSError as error:
            self.close()
            raise UserError(f"{error.filename}: cannot be opened: {error.strerror}") from None

    def _open(self, path: Path) -> int:
        if self.io == DIRECT:
            try:
                return os.open(path, os.O_RDONLY | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            print(
                f"warning: {path.parent} has no direct I/O: reads go through the page cache", file=sys.stderr
            )
            self.io = BUFFERED
        return os.open(path, os.O_RDONLY)

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())

    def fill(self, span: Span) -> None:
        """Reads the bytes of `span` into its memory. Raises ReadFault."""
        state = self._states[span.shard]
        fault = "nothing was read"
        for _ in range(ATTEMPTS):
            try:
                if _state(self._files[span.shard]) != state:
                    raise ReadFault(self.paths[span.shard], f"{_where(span)}: the file changed while in use")
                if self._fill_once(span):
                    return
                fault = "short read: the file is truncated or its disk fails"
            except OSError as error:
                fault = error.strerror or str(error)
        what = f"{_where(span)}: not read in {ATTEMPTS} attempts: {fault}"
        raise ReadFault(self.paths[span.shard], what)

    def _fill_once(self, span: Span) -> bool:
        """Whether all bytes came."""
        if self.io == BUFFERED:
            return self._read_all(span.shard, span.memory[span.at :][: span.nbytes], span.offset, span.nbytes)
        before = span.offset % PAGE_BYTES
        begin, window = span.at - before, pages(before + span.nbytes)
        if begin >= 0 and begin + window <= len(span.memory) and _aligned(span.memory, begin):
            target = span.memory[begin : begin + window]
            return self._read_all(span.shard, target, span.offset - before, before + span.nbytes)
        return self._bounce(span)

    def _bounce(self, span: Span) -> bool:
        """By way of an aligned buffer, for a destination that is not aligned as the file is."""
        buffer, done = self._buffer(), 0
        while done < span.nbytes:
            before = (span.offset + done) % PAGE_BYTES
            size = min(REQUEST_BYTES - before, span.nbytes - done)
            window = buffer[: pages(before + size)]
            if not self._read_all(span.shard, window, span.offset + done - before, before + size):
                return False
            np.copyto(span.memory[span.at + done :][:size], window[before : before + size])
            done += size
        return True

    def _buffer(self) -> np.ndarray:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = HostMemory(REQUEST_BYTES).bytes
        return self._local.buffer

    def _read_all(self, shard: int, target: np.ndarray, offset: int, needed: int) -> bool:
        """Fills `target` to `needed` bytes at least; a direct read goes on at a page only."""
        done = 0
        while done < needed:
            count = self.read(self._files[shard], [target[done:]], offset + done)
            if count <= 0:
                return False
            before, done = done, done + count
            if done < needed and self.io == DIRECT:
                done -= done % PAGE_BYTES
                if done == before:
                    return False
        return True


def _aligned(memory: np.ndarray, begin: int) -> bool:
    return (memory.ctypes.data + begin) % PAGE_BYTES == 0


def _where(span: Span) -> str:
    return f"{span.nbytes} bytes at offset {span.offset}"


def _state(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns
