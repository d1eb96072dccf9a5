"""Int4's inner loops, written for vectors of 32 outputs: compilers do not keep the sums of 64 outputs in
registers by themselves. The machine code uses whatever vectors the processor has.

A block is 64 outputs: for each input 32 bytes, the codes of the first 32 outputs in their low halves and
those of the other 32 in their high halves. A number is `(code - 8) * scale + zero`.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from dwellmoe.experts.kernels.writer import ADDRESS, BYTE, LONG, WORD, Writer, processor_has

HALF = 32
BYTES, WORDS = (ir.VectorType(each, HALF) for each in (BYTE, WORD))
FLOATS = ir.VectorType(ir.FloatType(), HALF)
QUARTER, ROWS = 16, 4
"""Outputs of the widest vector of sums, and rows whose sums stay in registers."""
TWO_INPUTS, QUARTER_SUMS = ir.VectorType(BYTE, 2 * HALF), ir.VectorType(WORD, QUARTER)
BYTE_PRODUCTS = "llvm.x86.avx512.vpdpbusd.{bits}"


def has_byte_products() -> bool:
    """Whether the processor adds up products of bytes (AVX-512 VNNI)."""
    return processor_has("avx512vnni", "avx512vl")


def _all(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * HALF)


class _Writer(Writer):
    """What int4 needs beside."""

    def spread(self, number: Any) -> Any:
        """One float in all places."""
        undefined = ir.Constant(FLOATS, ir.Undefined)
        first = self.builder.insert_element(undefined, number, WORD(0))
        return self.builder.shuffle_vector(first, undefined, _all(WORDS, 0))

    def codes(self, address: Any) -> tuple[Any, Any]:
        """Those of one input for both halves of the block, as floats."""
        pair = self.load(address, BYTES, align=1)
        halves = self.builder.and_(pair, _all(BYTES, 15)), self.builder.lshr(pair, _all(BYTES, 4))
        low, high = (self.builder.uitofp(half, FLOATS) for half in halves)
        return low, high

    def scale_and_zero(self, address: Any, half: int) -> tuple[Any, Any]:
        """Of 32 outputs: pairs of bfloat16."""
        both = self.load(address, WORDS, 4 * HALF * half)
        scale = self.builder.shl(both, _all(WORDS, 16))
        zero = self.builder.and_(both, _all(WORDS, 0xFFFF0000))
        return self.builder.bitcast(scale, FLOATS), self.builder.bitcast(zero, FLOATS)

    def bytes_of_outputs(self, rows: list[Any]) -> list[Any]:
        """Bytes of four inputs, [4][32 outputs], as the four bytes of each output: each of the results has
        those of eight outputs, `n` and 16 + `n` for four neighbours.
        """
        pairs = [self._unpacked(*two, size=1) for two in (rows[:2], rows[2:])]
        return [each for two in zip(*pairs, strict=True) for each in self._unpacked(*two, size=2)]

    def _unpacked(self, first: Any, second: Any, size: int) -> list[Any]:
        """Pieces of `size` bytes of both in turns, within each 16 bytes: their lower and upper halves."""
        masks = [
            [
                16 * lane + half * 8 + piece * size + byte + HALF * vector
                for lane in range(2)
                for piece in range(8 // size)
                for vector in range(2)
                for byte in range(size)
            ]
            for half in range(2)
        ]
        return [self.builder.shuffle_vector(first, second, ir.Constant(WORDS, mask)) for mask in masks]

    def quarters(self, address: Any) -> list[Any]:
        """The codes of four inputs, as four bytes of each output: 16 outputs in each of the results."""
        pairs = [self.load(address, TWO_INPUTS, 2 * HALF * each, align=1) for each in range(2)]
        found = []
        for first in (0, QUARTER):
            mask = [HALF * each + n for n in range(first, first + QUARTER) for each in range(4)]
            kind = ir.VectorType(WORD, len(mask))
            found.append(self.builder.shuffle_vector(*pairs, ir.Constant(kind, mask)))
        low = [self.builder.and_(each, ir.Constant(TWO_INPUTS, [15] * 2 * HALF)) for each in found]
        high = [self.builder.lshr(each, ir.Constant(TWO_INPUTS, [4] * 2 * HALF)) for each in found]
        return low + high

    def four_bytes(self, address: Any, times: int) -> Any:
        """The four bytes at an address, so many times."""
        kind = ir.VectorType(WORD, times)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, self.load(address, WORD, align=1), WORD(0))
        spread = self.builder.shuffle_vector(first, undefined, ir.Constant(kind, [0] * times))
        return self.builder.bitcast(spread, ir.VectorType(BYTE, 4 * times))

    def added_bytes(self, sums: Any, unsigned: Any, signed: Any) -> Any:
        """The sums, to each of which four products of an unsigned and a signed byte are added."""
        name = BYTE_PRODUCTS.format(bits=WORD.width * sums.type.count)
        return self.of_processor(name, sums, unsigned, signed)

    def in_order(self, high: list[Any], low: list[Any]) -> Any:
        """256 * high + low, of eight outputs each as `bytes_of_outputs` has them, as 32 outputs in order."""
        of_eight = ir.VectorType(WORD, 8)
        shifted = [self.builder.shl(each, ir.Constant(of_eight, [8] * 8)) for each in high]
        whole = [self.builder.add(*each) for each in zip(shifted, low, strict=True)]
        after_one_another = ir.Constant(ir.VectorType(WORD, 16), list(range(16)))
        halves = [self.builder.shuffle_vector(*whole[i : i + 2], after_one_another) for i in (0, 2)]
        places = [8 * (n % 16 // 4) + 4 * (n // 16) + n % 4 for n in range(HALF)]
        return self.builder.shuffle_vector(*halves, ir.Constant(WORDS, places))


@intrinsic
def _add_products(typing_context, codes, scales, x, sum_of_x, totals, count):
    """Adds to the 64 float32 at `totals` the products of a group of `count` inputs, float32 at `x`:
    scale * (sum of x * code - 8 * sum of x) + zero * sum of x.
    """

    def generate(context, builder, signature, arguments):
        codes, scales, x, sum_of_x, totals, count = arguments
        write = _Writer(builder)
        sums = write.sums(FLOATS, 2)
        with write.each(count) as index:
            factor = write.spread(write.load(write.step(x, index, LONG(4)), ir.FloatType()))
            for numbers, each in zip(write.codes(write.step(codes, index, LONG(HALF))), sums, strict=True):
                builder.store(write.fused(numbers, factor, builder.load(each)), each)
        every = write.spread(sum_of_x)
        shift = builder.fmul(every, _all(FLOATS, -8.0))
        for half, each in enumerate(sums):
            scale, zero = write.scale_and_zero(scales, half)
            before = write.load(totals, FLOATS, 4 * HALF * half)
            steps = builder.fadd(builder.load(each), shift)
            total = write.fused(scale, steps, write.fused(zero, every, before))
            write.store(total, totals, 4 * HALF * half, align=4)
        return context.get_dummy_value()

    return types.void(ADDRESS, ADDRESS, ADDRESS, types.float32, ADDRESS, ADDRESS), generate


@intrinsic
def _add_integer_products(typing_context, codes, scales, high, low, step, sum_of_x, totals, count):
    """As `_add_products`, for x in whole steps: 256 * high + low, `count` int8 each, times the float `step`.

    The processor multiplies bytes of four inputs of an output at once and adds them up; nothing is rounded.
    """

    def generate(context, builder, signature, arguments):
        codes, scales, high, low, step, sum_of_x, totals, count = arguments
        write = _Writer(builder)
        of_eight, of_all = ir.VectorType(WORD, 8), range(4)
        sums = [write.sums(of_eight, 8) for _ in ("high", "low")]
        with write.each(builder.lshr(count, LONG(2))) as index:
            first = write.step(codes, index, LONG(4 * HALF))
            inputs = [write.load(first, BYTES, HALF * each, align=1) for each in of_all]
            outputs = write.bytes_of_outputs(inputs)
            parts = [builder.and_(each, _all(BYTES, 15)) for each in outputs]
            parts += [builder.lshr(each, _all(BYTES, 4)) for each in outputs]
            for digits, of_digits in zip((high, low), sums, strict=True):
                factors = write.four_bytes(write.step(digits, index, LONG(4)), 8)
                for part, each in zip(parts, of_digits, strict=True):
                    builder.store(write.added_bytes(builder.load(each), part, factors), each)
        every, step = write.spread(sum_of_x), write.spread(step)
        shift = builder.fmul(every, _all(FLOATS, -8.0))
        for half in range(2):
            of_half = [[builder.load(sums[digit][4 * half + each]) for each in of_all] for digit in range(2)]
            whole = write.in_order(*of_half)
            scale, zero = write.scale_and_zero(scales, half)
            before = write.load(totals, FLOATS, 4 * HALF * half)
            steps = write.fused(builder.sitofp(whole, FLOATS), step, shift)
            total = write.fused(scale, steps, write.fused(zero, every, before))
            write.store(total, totals, 4 * HALF * half, align=4)
        return context.get_dummy_value()

    numbers = (ADDRESS,) * 4 + (types.float32,) * 2 + (ADDRESS,) * 2
    return types.void(*numbers), generate


@intrinsic
def _add_products_of_rows(typing_context, codes, scales, x, row_bytes, steps, step_bytes, totals, count):
    """Adds to the float32 at `totals` [ROWS, 64] the products of a group of `count` inputs of ROWS rows.

    A row's inputs are `count` int8 at `x`, the next row's `row_bytes` further; at `steps` stand the float32
    that they are multiples of, and their sum times that step, the next row's `step_bytes` further.
    """

    def generate(context, builder, signature, arguments):
        codes, scales, x, row_bytes, steps, step_bytes, totals, count = arguments
        write = _Writer(builder)
        sums = [write.sums(QUARTER_SUMS, 4) for _ in range(ROWS)]
        with write.each(builder.lshr(count, LONG(2))) as index:
            parts = write.quarters(write.step(codes, index, LONG(4 * HALF)))
            for row, of_row in enumerate(sums):
                place = builder.add(write.step(x, LONG(row), row_bytes), write.step(LONG(0), index, LONG(4)))
                factors = write.four_bytes(place, QUARTER)
                for part, each in zip(parts, of_row, strict=True):
                    builder.store(write.added_bytes(builder.load(each), part, factors), each)
        pairs = [write.scale_and_zero(scales, half) for half in range(2)]
        lowest = [write.fused(scale, _all(FLOATS, -8.0), zero) for scale, zero in pairs]
        in_order = ir.Constant(WORDS, [*range(HALF)])
        for row, of_row in enumerate(sums):
            of_group = write.step(steps, LONG(row), step_bytes)
            step, sum_of_x = (write.spread(write.load(of_group, ir.FloatType(), shift)) for shift in (0, 4))
            for half in range(2):
                quarters = [builder.load(each) for each in of_row[2 * half : 2 * half + 2]]
                whole = builder.sitofp(builder.shuffle_vector(*quarters, in_order), FLOATS)
                place = builder.add(totals, LONG(4 * HALF * (2 * row + half)))
                before = write.fused(lowest[half], sum_of_x, write.load(place, FLOATS))
                scaled = builder.fmul(pairs[half][0], step)
                write.store(write.fused(scaled, whole, before), place, 0, align=4)
        return context.get_dummy_value()

    return types.void(*(ADDRESS,) * 8), generate


def _decoder(short: bool) -> Any:
    itemsize = 2 if short else 4

    @intrinsic
    def decode(typing_context, codes, scales, out, row_bytes, count):
        """Writes the 64 numbers of each of `count` inputs, rows of `row_bytes` from one to the next."""

        def generate(context, builder, signature, arguments):
            codes, scales, out, row_bytes, count = arguments
            write = _Writer(builder)
            pairs = [write.scale_and_zero(scales, half) for half in range(2)]
            with write.each(count) as index:
                row = write.step(out, index, row_bytes)
                both = write.codes(write.step(codes, index, LONG(HALF)))
                for half, (numbers, (scale, zero)) in enumerate(zip(both, pairs, strict=True)):
                    steps = builder.fadd(numbers, _all(FLOATS, -8.0))
                    found = write.fused(scale, steps, zero)
                    found = write.rounded(found) if short else found
                    write.store(found, row, itemsize * HALF * half, align=itemsize)
            return context.get_dummy_value()

        return types.void(ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS), generate

    return decode


add_products: Any = _add_products
"""`add_products(codes, scales, x, sum_of_x, totals, count)` in a pass."""
add_integer_products: Any = _add_integer_products
"""`add_integer_products(codes, scales, high, low, step, sum_of_x, totals, count)` in a pass."""
add_products_of_rows: Any = _add_products_of_rows
"""`add_products_of_rows(codes, scales, x, row_bytes, steps, step_bytes, totals, count)` in a pass."""
to_float32, to_bfloat16 = _decoder(short=False), _decoder(short=True)
"""`decode(codes, scales, out, row_bytes, count)` in a pass."""
