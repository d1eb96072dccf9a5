"""Formats of frozen experts, one file each: what `--expert_format` names, and what checkpoints publish."""

from dwellmoe.errors import unknown_name
from dwellmoe.experts.formats.base import QuantisingFormat
from dwellmoe.registry import Registry, name_of

FORMATS = Registry(
    "expert format", __name__, "FORMAT", skip=("base", "blocks", "passes", "stored", "mxfp4", "fp8")
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
