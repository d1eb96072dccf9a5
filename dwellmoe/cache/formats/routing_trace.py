"""This project's own trace files (.safetensors), as `RoutingTrace` writes them."""

from dwellmoe.cache.trace import RoutingTrace

SUFFIXES = (".safetensors",)
HINTS = ()
read = RoutingTrace.load
write = RoutingTrace.save


def recognise(head: bytes) -> bool:
    return head[8:9] == b"{"
