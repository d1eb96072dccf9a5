"""Measures products of rows and one expert's matrices in each format, by both ways that a format knows.

    python benchmarks/low_bit_products.py --json PATH

`direct` multiplies with the low-bit form itself, by torch's kernel or a compiled pass; `copy` dequantises the
matrix into a buffer that is used again and multiplies with that. The experts take turns, so that their
weights come from memory and not from the processor's cache. Of many runs the best tenth counts: the median of
the fastest tenth, in microseconds for gate_up and down together. `product` is what the format chooses.
"""

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from result import parser_of, save_result
from torch.nn.functional import linear

from dwellmoe.errors import run_command
from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.base import ExpertFormat, Stored
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.mxfp4 import Mxfp4
from dwellmoe.experts.formats.stored import PlainWeights

SHAPES = {"gate_up": (2048, 2048), "down": (2048, 1024)}
"""OLMoE's: hidden size 2048, intermediate size 1024."""
ROWS = (1, 4, 16, 64, 512)
FORMATS: dict[str, ExpertFormat] = {
    "bfloat16": PlainWeights(torch.bfloat16),
    "int8": parse_format("int8"),  # type: ignore[dict-item] - it is none only for as_stored
    "int4:group=32": parse_format("int4:group=32"),  # type: ignore[dict-item]
    "int4:group=64": parse_format("int4:group=64"),  # type: ignore[dict-item]
    "int4:group=128": parse_format("int4:group=128"),  # type: ignore[dict-item]
    "nf4": parse_format("nf4"),  # type: ignore[dict-item]
    "mxfp4": Mxfp4(),
    "fp8": BlockFp8((128, 128)),
}
ALL_ROWS = 1 << 30


def held(format: ExpertFormat, shape_OI: tuple[int, int]) -> Stored:
    """A random matrix in a format: random codes do where it cannot quantise."""
    weight_OI = torch.randn(shape_OI).mul_(0.02).bfloat16()
    if isinstance(format, PlainWeights):
        return {"weight": weight_OI}
    if isinstance(format, BlockFp8):
        scales = {field.name: torch.full(field.shape, 1e-3) for field in format.fields(shape_OI)}
        return {**scales, "weight": (weight_OI * 1e3).to(torch.float8_e4m3fn)}
    return format.quantise(weight_OI)  # type: ignore[attr-defined] - all others can


def micros(call: Callable[[int], Any], seconds: float) -> float:
    """The median of the fastest tenth of the calls within so many seconds, at least 20."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 20 or time.perf_counter() < end:
        began = time.perf_counter()
        call(len(taken))
        taken.append(1e6 * (time.perf_counter() - began))
    return statistics.median(sorted(taken)[: max(1, len(taken) // 10)])


def measure(name: str, rows: int, experts: int, seconds: float) -> dict[str, float]:
    """Microseconds of one expert for so many rows, by each way."""
    format = FORMATS[name]
    module: Any = importlib.import_module(type(FORMATS[name]).__module__)
    stored = [{key: held(format, shape) for key, shape in SHAPES.items()} for _ in range(experts)]
    x = {key: torch.randn(rows, shape[1]).bfloat16() for key, shape in SHAPES.items()}

    def product(turn: int, multiply: Callable) -> None:
        for key, shape in SHAPES.items():
            multiply(format, x[key], stored[turn % experts][key], shape)

    def plain(turn: int) -> None:
        for key in SHAPES:
            linear(x[key], stored[turn % experts][key]["weight"])

    if isinstance(format, PlainWeights):
        return {"product": micros(plain, seconds)}
    chosen = module.FEW_ROWS
    ways = {"product": chosen, "direct": ALL_ROWS, "copy": chosen}
    found = {}
    for way, module.FEW_ROWS in ways.items():
        multiply = ExpertFormat.product if way == "copy" else type(format).product
        product(0, multiply)  # compiles
        found[way] = micros(lambda turn, multiply=multiply: product(turn, multiply), seconds)
    module.FEW_ROWS = chosen
    return found


def bytes_of(name: str) -> int:
    fields = [field for shape in SHAPES.values() for field in FORMATS[name].fields(shape)]
    return sum(torch.Size(field.shape).numel() * field.dtype.itemsize for field in fields)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--formats", nargs="+", default=[*FORMATS], choices=[*FORMATS])
    parser.add_argument("--rows", nargs="+", type=int, default=[*ROWS])
    parser.add_argument("--experts", type=int, default=16, help="that take turns")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    args = parser.parse_args()
    found = {
        name: {
            "bytes": bytes_of(name),
            "microseconds": {rows: measure(name, rows, args.experts, args.seconds) for rows in args.rows},
        }
        for name in args.formats
    }
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    save_result({"schema_version": 1, **machine, "formats": found}, args.json)


if __name__ == "__main__":
    run_command(main)
