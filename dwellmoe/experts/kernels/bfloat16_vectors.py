"""The inner loop of products of several rows in bfloat16, by the instruction for which processors have made
that type (AVX-512 BF16): it adds 32 products to 16 sums in float32.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dwellmoe.experts.kernels.writer import ADDRESS, LONG, WORD, Writer, processor_has

LANES, OUTPUTS, ROWS = 16, 4, 4
"""Sums of a vector, and outputs and rows whose vectors of sums stay in registers."""
VECTOR_BYTES, VECTORS_AT_ONCE = 4 * LANES, 2
INPUTS = 2 * LANES * VECTORS_AT_ONCE
"""Of a step of the loop."""
PAIR_PRODUCTS = "llvm.x86.avx512bf16.dpbf16ps.512"


class _Bfloat16(ir.Type):
    """LLVM's type, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


SUMS, NUMBERS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_Bfloat16(), 2 * LANES)


def has_pair_products() -> bool:
    """Whether the processor has that instruction."""
    return processor_has("avx512bf16")


class _Writer(Writer):
    def numbers(self, address: Any, index: Any, vector: int) -> Any:
        """One vector of those that a step of the loop reads."""
        return self.load(self.place(address, index, vector), NUMBERS, align=2)

    def place(self, address: Any, index: Any, vector: int) -> Any:
        first = self.step(address, index, LONG(VECTOR_BYTES * VECTORS_AT_ONCE))
        return self.builder.add(first, LONG(VECTOR_BYTES * vector))

    def sum_of_each(self, vectors: list[Any]) -> Any:
        """The sum of each of OUTPUTS vectors, as one vector: neighbours are added until one is left."""
        while len(vectors) > 1:
            vectors = [self._neighbours(*vectors[i : i + 2]) for i in range(0, len(vectors), 2)]
        (found,) = vectors
        while found.type.count > OUTPUTS:
            found = self._neighbours(found, found, found.type.count // 2)
        return found

    def _neighbours(self, first: Any, second: Any, count: int = LANES) -> Any:
        """Sums of neighbours in the first vector, then in the second: the first `count` of them."""
        kind = ir.VectorType(WORD, count)
        parts = [
            self.builder.shuffle_vector(first, second, ir.Constant(kind, [*range(odd, 2 * count, 2)]))
            for odd in (0, 1)
        ]
        return self.builder.fadd(*parts)


def _row_products(rows: int, prefetches: bool = False) -> Any:
    @intrinsic
    def write_products(typing_context, x, matrix, row_bytes, out, out_row_bytes, steps, ahead):
        """Writes OUTPUTS numbers for each of `rows` rows: the rows at `x` times those at `matrix`.

        row_bytes      from one row to the next, at `x` and at `matrix`
        out_row_bytes  from a row's outputs to the next row's
        steps          a row's inputs, divided by INPUTS
        ahead          where the row lies that is asked for meanwhile; used by those that prefetch alone
        """

        def generate(context, builder, signature, arguments):
            x, matrix, row_bytes, out, out_row_bytes, steps, ahead = arguments
            write = _Writer(builder)
            sums = [write.sums(SUMS, OUTPUTS) for _ in range(rows)]
            x_rows = [write.step(x, LONG(row), row_bytes) for row in range(rows)]
            matrix_rows = [write.step(matrix, LONG(row), row_bytes) for row in range(OUTPUTS)]
            with write.each(steps) as index:
                for vector in range(VECTORS_AT_ONCE):
                    if prefetches:
                        write.prefetch(write.place(ahead, index, vector))
                    factors = [write.numbers(each, index, vector) for each in matrix_rows]
                    for x_row, of_row in zip(x_rows, sums, strict=True):
                        numbers = write.numbers(x_row, index, vector)
                        for place, factor in zip(of_row, factors, strict=True):
                            before = builder.load(place)
                            added = write.of_processor(PAIR_PRODUCTS, before, numbers, factor)
                            builder.store(added, place)
            for row, of_row in enumerate(sums):
                found = write.sum_of_each([builder.load(place) for place in of_row])
                place = write.step(out, LONG(row), out_row_bytes)
                write.store(write.rounded(found), place, 0, align=2)
            return context.get_dummy_value()

        return types.void(*(ADDRESS,) * 7), generate

    return write_products


products_of_row, products_of_rows = _row_products(1), _row_products(ROWS)
products_with_prefetch = _row_products(ROWS, prefetches=True)
"""`write_products(x, matrix, row_bytes, out, out_row_bytes, steps, ahead)` in a pass."""
