"""Tokenised rows as a batch, padded or packed. B rows, T tokens.

Both collators give `segment_ids` [B, T]: 0 on padding, n on the n-th request of a row. They mark where one
request ends, which the locality loss needs and the model does not take: pop it before the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]
Segment = dict[str, list[int]]
IGNORED_LABEL = -100
"""The label of tokens that are not predicted: prompts and padding. PyTorch's cross entropy leaves it out."""


@dataclass(frozen=True)
class PaddingCollator:
    """One request a row, padded on the right to the longest of the batch, rounded up to `multiple`.

    Gives `input_ids`, `attention_mask`, `labels`, `segment_ids`, all int64 [B, T].
    """

    pad_token_id: int
    multiple: int = 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        batch = _stack([[row] for row in rows], self.pad_token_id, self.multiple)
        del batch["position_ids"]
        return batch | {"attention_mask": (batch["segment_ids"] > 0).long()}


@dataclass(frozen=True)
class PackingCollator:
    """Several requests a row, as many as fit in `max_tokens`; a batch of n examples may give fewer than n
    rows.

    Gives `input_ids`, `labels`, `position_ids` (from 0 again at each request), `segment_ids`, all int64 [B,
    T], and `use_cache=False`: transformers tells packed requests apart by their positions, but only without
    an attention mask and without a cache; with either, requests of a row would silently see one another.
    """

    pad_token_id: int
    max_tokens: int
    multiple: int = 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        packs = pack_examples(rows, self.max_tokens)
        return _stack(packs, self.pad_token_id, self.multiple) | {"use_cache": False}


def pack_examples(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Groups of rows that fit into `max_tokens` together: longest first, each where it first fits."""
    packs: list[list[Row]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        length = len(row["input_ids"])
        first = next((i for i, free in enumerate(room) if free >= length), None)
        if first is None:
            packs.append([row])
            room.append(max_tokens - length)
        else:
            packs[first].append(row)
            room[first] -= length
    return packs


def _stack(packs: list[list[Row]], pad_token_id: int, multiple: int) -> dict[str, torch.Tensor]:
    longest = max(sum(len(row["input_ids"]) for row in pack) for pack in packs)
    width = -(-longest // multiple) * multiple
    rows = [_flatten(pack, width, pad_token_id) for pack in packs]
    return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}


def _flatten(pack: list[Row], width: int, pad_token_id: int) -> Segment:
    segments = [_segment(row, segment_id) for segment_id, row in enumerate(pack, start=1)]
    missing = width - sum(len(segment["input_ids"]) for segment in segments)
    segments.append(_padding(missing, pad_token_id))
    return {name: [value for segment in segments for value in segment[name]] for name in segments[0]}


def _segment(row: Row, segment_id: int) -> Segment:
    length = len(row["input_ids"])
    return {
        "input_ids": list(row["input_ids"]),
        # The first token of a request would be predicted from the request before it.
        "labels": [IGNORED_LABEL, *row["labels"][1:]],
        "position_ids": list(range(length)),
        "segment_ids": [segment_id] * length,
    }


def _padding(length: int, pad_token_id: int) -> Segment:
    return {
        "input_ids": [pad_token_id] * length,
        "labels": [IGNORED_LABEL] * length,
        "position_ids": list(range(length)),
        "segment_ids": [0] * length,
    }
