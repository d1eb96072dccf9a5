"""Flat ids: one number for an expert of any layer, expert e of layer l being l * E + e."""

from typing import NewType

FlatId = NewType("FlatId", int)


def flat_id(layer: int, expert: int, experts: int) -> FlatId:
    """The flat id of one expert, in a model of `experts` routed experts a layer."""
    return FlatId(layer * experts + expert)


def layer_and_expert(flat_id: FlatId, experts: int) -> tuple[int, int]:
    """(layer, expert) of a flat id."""
    return divmod(flat_id, experts)
