"""`Writer` writes the instructions of functions whose loops no compiler brings into vectors by itself. The
machine code uses whatever vectors the processor has.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

BYTE, SHORT, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
ADDRESS = types.int64
READ, KEEP, DATA = WORD(0), WORD(3), WORD(1)
"""What `llvm.prefetch` is told: not to be written, keep in all caches, no code."""


@cache
def processor_has(*features: str) -> bool:
    """Whether the processor has these, by LLVM's names, which takes LLVM a tenth of a millisecond to tell."""
    found = llvmlite.binding.get_host_cpu_features()
    return all(found.get(feature) for feature in features)


class Writer:
    """Loads, stores, sums and loops, at addresses that are whole numbers."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def pointer(self, address: Any, kind: Any, shift: int = 0) -> Any:
        return self.builder.inttoptr(self.builder.add(address, LONG(shift)), kind.as_pointer())

    def load(self, address: Any, kind: Any, shift: int = 0, align: int = 4) -> Any:
        return self.builder.load(self.pointer(address, kind, shift), align=align)

    def store(self, numbers: Any, address: Any, shift: int, align: int) -> None:
        self.builder.store(numbers, self.pointer(address, numbers.type, shift), align=align)

    def prefetch(self, address: Any) -> None:
        """Asks for the cache line at an address, which need not be memory of ours."""
        kind = ir.FunctionType(
            ir.VoidType(), [cgutils.voidptr_t, *(each.type for each in (READ, KEEP, DATA))]
        )
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        place = self.builder.inttoptr(address, cgutils.voidptr_t)
        self.builder.call(function, [place, READ, KEEP, DATA])

    def fused(self, first: Any, second: Any, third: Any) -> Any:
        product = self.builder.fmul(first, second, flags=("contract",))
        return self.builder.fadd(product, third, flags=("contract",))

    def rounded(self, floats: Any) -> Any:
        """As bits of bfloat16, ties to even."""
        count = floats.type.count
        words, shorts = (ir.VectorType(each, count) for each in (WORD, SHORT))
        upper, one, below_half = (ir.Constant(words, [value] * count) for value in (16, 1, 0x7FFF))
        bits = self.builder.bitcast(floats, words)
        odd = self.builder.and_(self.builder.lshr(bits, upper), one)
        up = self.builder.add(self.builder.add(bits, below_half), odd)
        return self.builder.trunc(self.builder.lshr(up, upper), shorts)

    def of_processor(self, name: str, sums: Any, *factors: Any) -> Any:
        """The result of an instruction of the processor that adds products to sums."""
        kind = ir.FunctionType(sums.type, [sums.type, *(each.type for each in factors)])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [sums, *factors])

    def sums(self, kind: Any, count: int) -> list[Any]:
        """Places of so many vectors of sums, which are zero."""
        places = [cgutils.alloca_once(self.builder, kind) for _ in range(count)]
        for place in places:
            self.builder.store(ir.Constant(kind, [0] * kind.count), place)
        return places

    def step(self, address: Any, index: Any, nbytes: Any) -> Any:
        return self.builder.add(address, self.builder.mul(index, nbytes))

    @contextmanager
    def each(self, count: Any) -> Iterator[Any]:
        with cgutils.for_range(self.builder, count) as loop:
            yield loop.index
