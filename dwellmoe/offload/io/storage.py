"""Storage: reads byte ranges of checkpoint files, past the page cache where the file system can."""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory, pages

DIRECT, BUFFERED = "direct", "buffered"
REQUEST_BYTES = 4 << 20
ATTEMPTS = 3

PositionedRead = Callable[[int, list, int], int]
"""os.preadv: (file descriptor, [memory], offset) -> bytes read."""


class ReadFault(UserError):
    """Bytes of a file that could not be read in any attempt."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path, self.what = path, what


class Span(NamedTuple):
    """A part of a shard and the memory it is read to."""

    shard: int
    offset: int
    nbytes: int
    memory: np.ndarray
    """uint8: the target and as much around it as a direct read, which reads whole pages, may overwrite."""
    begin: int
    """First byte of the target in `memory`."""


class Storage:
    """Open shards. Thread-safe; every reader thread has a bounce buffer of its own.

    io    "direct": O_DIRECT, so that the page cache takes no memory and hides no disk time; on a file system
          without direct I/O reads are buffered, with a warning. "buffered": through the page cache
    read  os.preadv, or a test's replacement

    A read that fails or is short is repeated ATTEMPTS times in all; then ReadFault names shard and offset. A
    shard whose size or time of change differs from when it was opened is a ReadFault too.
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
            warn_once(f"warning: {path.parent} has no direct I/O: reads go through the page cache")
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
        """Returns whether all bytes were read."""
        if self.io == BUFFERED:
            return self._read_all(
                span.shard, span.memory[span.begin :][: span.nbytes], span.offset, span.nbytes
            )
        before = span.offset % PAGE_BYTES
        begin, window = span.begin - before, pages(before + span.nbytes)
        if begin >= 0 and begin + window <= len(span.memory) and _aligned(span.memory, begin):
            target = span.memory[begin : begin + window]
            return self._read_all(span.shard, target, span.offset - before, before + span.nbytes)
        return self._bounce(span)

    def _bounce(self, span: Span) -> bool:
        """Reads through an aligned buffer, for a target that is not aligned as the file is."""
        buffer = self._buffer()
        done = 0
        while done < span.nbytes:
            before = (span.offset + done) % PAGE_BYTES
            size = min(REQUEST_BYTES - before, span.nbytes - done)
            window = buffer[: pages(before + size)]
            if not self._read_all(span.shard, window, span.offset + done - before, before + size):
                return False
            np.copyto(span.memory[span.begin + done :][:size], window[before : before + size])
            done += size
        return True

    def _buffer(self) -> np.ndarray:
        if not hasattr(self._local, "buffer"):
            self._local.buffer = HostMemory(REQUEST_BYTES).bytes
        return self._local.buffer

    def _read_all(self, shard: int, target: np.ndarray, offset: int, needed: int) -> bool:
        """Fills at least the first `needed` bytes of `target`; a direct read can only go on at a page."""
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
