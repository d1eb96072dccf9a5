"""Compiled passes that quantise numbers in blocks: plain loops over numpy arrays, which `blocks.py` calls."""

import math

import numpy as np

from dwellmoe.cache.kernel.jit import compiled, helper


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


def _microscale(numbers, midpoints, values, codes, exponents):
    for block in range(numbers.shape[0]):
        most = np.float32(0)
        for number in numbers[block]:
            most = max(most, abs(number))
        plain = math.frexp(most)[1] - 3 if most > 0 else 0  # the largest number is then 4 to 8 steps
        best, exponents[block] = np.inf, np.uint8(127)
        for exponent in (plain, plain + 1, plain - 1):
            power = max(-127, min(127, exponent))
            scale, share = math.ldexp(1.0, power), math.ldexp(1.0, -power)
            error = 0.0
            for number in numbers[block]:
                size = abs(number) * share
                away = (values[_step_of(size, midpoints)] - size) * scale
                error += away * away
            if error < best:
                best, exponents[block] = error, np.uint8(power + 127)
        share = math.ldexp(1.0, 127 - int(exponents[block]))
        for pair in range(codes.shape[1]):
            first = _signed_step(numbers[block, 2 * pair], share, midpoints)
            second = _signed_step(numbers[block, 2 * pair + 1], share, midpoints)
            codes[block, pair] = first | (second << 4)


@helper
def _step_of(size, midpoints):
    """The index of the nearest of eight sizes, the smaller of two that are as near."""
    code = 0
    for midpoint in midpoints:
        code += size > midpoint
    return code


@helper
def _signed_step(number, share, midpoints):
    return np.uint8(_step_of(abs(number) * share, midpoints)) | np.uint8(8 if number < 0 else 0)


nearest = compiled(_nearest)
steps = compiled(_steps)
microscale = compiled(_microscale)
