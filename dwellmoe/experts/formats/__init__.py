"""Formats of frozen experts, one file each: what `--expert_format` names, and what checkpoints publish."""

import inspect
from typing import Any

import torch

from dwellmoe.errors import unknown_name
from dwellmoe.experts.formats.base import ExpertFormat, QuantisingFormat
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.q4_0 import Q4_0
from dwellmoe.experts.formats.q8_0 import Q8_0
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.registry import Registry, name_of, options_of

GGUF_FORMATS: dict[str, type[ExpertFormat]] = {Q8_0.name: Q8_0, Q4_0.name: Q4_0}
"""The formats that experts of GGUF files are held in."""
FORMATS = Registry(
    "expert format",
    __name__,
    "FORMAT",
    skip=("base", "blocks", "gguf_blocks", "passes", "stored", "fp8", *GGUF_FORMATS),
)
"""The formats that any checkpoint's experts can be brought into."""
AS_STORED = "as_stored"
"""Experts stay as the checkpoint holds them: 16 or 32 bits, MXFP4, block FP8."""


def parse_format(spec: str) -> QuantisingFormat | None:
    """`int4:group=64` -> the format; None for `as_stored`. UserError for an unknown name or option."""
    if spec == AS_STORED:
        return None
    if name_of(spec) not in FORMATS.names():
        raise unknown_name("expert format", name_of(spec), [*FORMATS.names(), AS_STORED])
    format_class, options = FORMATS.parse(spec)
    return format_class(**options)


def text_of(format: ExpertFormat | None) -> str:
    """A format with all of its options, as `format_of` reads it: `int4:group=64`, `bfloat16`, ...; None is
    `as_stored`.
    """
    if format is None:
        return AS_STORED
    if isinstance(format, PlainWeights):
        return _type_name(format.dtype)
    if isinstance(format, BlockFp8):
        rows, columns = format.block
        return (
            f"{format.name}:rows={rows},columns={columns},parts={format.parts},"
            f"scales={_type_name(format.scale_type)}"
        )
    parameters = inspect.signature(type(format)).parameters
    options = ",".join(f"{option}={getattr(format, option)}" for option in parameters)
    return f"{format.name}:{options}" if options else format.name


def format_of(text: str) -> ExpertFormat:
    """The format that `text_of` wrote. Raises UserError, or AttributeError for a type that torch lacks."""
    if name_of(text) == BlockFp8.name:
        options: dict[str, Any] = {**options_of("expert format", text, _block_fp8)}
        return _block_fp8(**options)
    if text in GGUF_FORMATS:
        return GGUF_FORMATS[text]()
    if name_of(text) in FORMATS.names():
        format_class, options = FORMATS.parse(text)
        return format_class(**options)
    return PlainWeights(getattr(torch, text))


def _block_fp8(*, rows: int = 128, columns: int = 128, parts: int = 1, scales: str = "float32") -> BlockFp8:
    return BlockFp8((rows, columns), parts=parts, scale_type=getattr(torch, scales))


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
