"""Compiled passes over numbers in blocks: plain loops over numpy arrays, which `blocks.py` calls.

bfloat16 is handled as its 16 bits, the upper half of a float32's.
"""

import numpy as np

from dwellmoe.cache.kernel.jit import compiled, helper


@helper
def _rounded_bits(number):
    """The bits of a float32 rounded to bfloat16, ties to even."""
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def _dequantise(codes, values, scales, zeros, high_first, out):
    first, second = (4, 0) if high_first else (0, 4)
    of_code = np.empty(16, np.float32)
    for block in range(codes.shape[0]):
        for code in range(16):
            of_code[code] = values[code] * scales[block] + zeros[block]
        for pair in range(codes.shape[1]):
            both = codes[block, pair]
            out[block, 2 * pair] = of_code[(both >> first) & 15]
            out[block, 2 * pair + 1] = of_code[(both >> second) & 15]


def _dequantise_rounded(codes, values, scales, zeros, high_first, out):
    first, second = (4, 0) if high_first else (0, 4)
    of_code = np.empty(16, np.uint16)
    for block in range(codes.shape[0]):
        for code in range(16):
            of_code[code] = _rounded_bits(values[code] * scales[block] + zeros[block])
        for pair in range(codes.shape[1]):
            both = codes[block, pair]
            out[block, 2 * pair] = of_code[(both >> first) & 15]
            out[block, 2 * pair + 1] = of_code[(both >> second) & 15]


def _scale(codes, values, scales, block, out):
    for row in range(codes.shape[0]):
        for group in range(scales.shape[1]):
            scale = scales[row, group]
            for column in range(group * block, min((group + 1) * block, codes.shape[1])):
                out[row, column] = values[codes[row, column]] * scale


def _nearest(numbers, midpoints, largest, codes):
    for block in range(numbers.shape[0]):
        most = np.float32(0)
        for number in numbers[block]:
            most = max(most, abs(number))
        largest[block] = most
        divisor = most if most > 0 else np.float32(1)
        for pair in range(codes.shape[1]):
            high = _code_of(numbers[block, 2 * pair] / divisor, midpoints)
            low = _code_of(numbers[block, 2 * pair + 1] / divisor, midpoints)
            codes[block, pair] = (high << 4) | low


@helper
def _code_of(share, midpoints):
    """How many of the 15 midpoints lie below: a search by halves."""
    code = 8 if share > midpoints[7] else 0
    code += 4 if share > midpoints[code + 3] else 0
    code += 2 if share > midpoints[code + 1] else 0
    return code + 1 if share > midpoints[code] else code


def _steps(numbers, scales, zeros, codes, errors):
    for block in range(numbers.shape[0]):
        scale, zero = scales[block], zeros[block]
        share = np.float32(1) / scale if scale > 0 else np.float32(1)
        error = np.float32(0)
        for pair in range(codes.shape[1]):
            first = _step(numbers[block, 2 * pair], share, zero)
            second = _step(numbers[block, 2 * pair + 1], share, zero)
            for number, step in ((numbers[block, 2 * pair], first), (numbers[block, 2 * pair + 1], second)):
                away = step * scale + zero - number
                error += away * away
            codes[block, pair] = np.uint8(first + 8) | (np.uint8(second + 8) << 4)
        errors[block] = error


@helper
def _step(number, share, zero):
    """The nearest of the whole numbers from -8 to 7."""
    return max(np.float32(-8), min(np.float32(7), np.rint((number - zero) * share)))


dequantise = compiled(_dequantise)
dequantise_rounded = compiled(_dequantise_rounded)
scale = compiled(_scale)
nearest = compiled(_nearest)
steps = compiled(_steps)
