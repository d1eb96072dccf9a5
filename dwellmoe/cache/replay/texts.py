"""The texts behind a trace: how many prompts, templates and answers differ, and how alike they are.

Everything is counted on token ids; a trace without them says nothing of its texts. Letters: R requests,
S rows, N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dwellmoe.cache.trace import DECODE, PREFILL, RoutingTrace

ENDS = 8  # tokens at the beginning and at the end of a prompt that are compared
ALL = "all"


@dataclass(frozen=True, eq=False)
class Texts:
    """The tokens of each request in time order, request after request."""

    tokens: np.ndarray  # int32 [S]
    decoded: np.ndarray  # bool [S]
    starts: np.ndarray  # int64 [R + 1]
    categories: list[str | None]  # [R]

    @classmethod
    def of(cls, trace: RoutingTrace) -> "Texts | None":
        """None for a trace without token ids."""
        if trace.token_ids is None:
            return None
        order = np.argsort(trace.request, kind="stable")
        names, first = np.unique(trace.request[order], return_index=True)
        known = trace.categories or {}
        return cls(
            tokens=trace.token_ids[order],
            decoded=trace.phase[order] == DECODE,
            starts=np.append(first, trace.steps),
            categories=[known.get(int(name)) for name in names],
        )

    def __len__(self) -> int:
        return len(self.categories)

    def whole(self, request: int) -> np.ndarray:
        return self.tokens[self.starts[request] : self.starts[request + 1]]

    def part(self, request: int, phase: int) -> np.ndarray:
        """The prompt (PREFILL) or what was decoded."""
        decoded = self.decoded[self.starts[request] : self.starts[request + 1]]
        return self.whole(request)[decoded == (phase == DECODE)]

    def groups(self) -> dict[str, list[int]]:
        """Category -> its requests, after all of them together."""
        found = {ALL: list(range(len(self)))}
        for request, category in enumerate(self.categories):
            if category is not None:
                found.setdefault(category, []).append(request)
        return found


def text_rows(texts: Texts) -> list[dict[str, Any]]:
    """Of all requests and of each category: how many prompts and decoded texts differ, how alike they are.

    `prefixes` and `endings`: distinct first and last 8 tokens of prompts; `templates`: both together.
    `positional_agreement`: share of pairs of texts that have the same token at the same decoded position,
    over all pairs and positions; None where no two texts have a position in common.
    """
    return [_text_row(texts, name, requests) for name, requests in texts.groups().items()]


def _text_row(texts: Texts, category: str, requests: Sequence[int]) -> dict[str, Any]:
    prompts = [prompt for request in requests if len(prompt := texts.part(request, PREFILL))]
    decoded = [text for request in requests if len(text := texts.part(request, DECODE))]
    return {
        "category": category,
        "requests": len(requests),
        "prompts": len(prompts),
        "prefixes": _distinct([prompt[:ENDS] for prompt in prompts]),
        "endings": _distinct([prompt[-ENDS:] for prompt in prompts]),
        "templates": len({(p[:ENDS].tobytes(), p[-ENDS:].tobytes()) for p in prompts}),
        "decoded_texts": len(decoded),
        "distinct_decoded_texts": _distinct(decoded),
        "positional_agreement": positional_agreement(decoded),
    }


def _distinct(texts: Sequence[np.ndarray]) -> int:
    return len({text.tobytes() for text in texts})


def positional_agreement(texts: Sequence[np.ndarray]) -> float | None:
    """Share of (pair of texts, position that both have) with the same token; None without such pairs."""
    if not texts:
        return None
    position = np.concatenate([np.arange(len(text), dtype=np.int64) for text in texts])
    token = np.concatenate(texts).astype(np.int64)
    at = np.bincount(position)
    _, same = np.unique(position << 32 | (token & 0xFFFFFFFF), return_counts=True)
    pairs = int((at * (at - 1)).sum())
    return float((same * (same - 1)).sum() / pairs) if pairs else None


def shared_prefixes(texts: Texts) -> np.ndarray:
    """int64 [R]: tokens, from its beginning on, that a request shares with the request most like it there."""
    ordered = sorted(range(len(texts)), key=lambda request: texts.whole(request).astype(">u4").tobytes())
    shared = np.zeros(len(texts), np.int64)
    for one, other in pairwise(ordered):
        common = _common_prefix(texts.whole(one), texts.whole(other))
        shared[one], shared[other] = max(shared[one], common), max(shared[other], common)
    return shared


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length


def requests_beyond_shared_prefix(texts: Texts) -> int:
    """Requests that decode a token beyond what another request begins with."""
    shared = shared_prefixes(texts)
    lengths = np.diff(texts.starts)
    return sum(
        bool(texts.decoded[texts.starts[request] + shared[request] : texts.starts[request] + length].any())
        for request, length in enumerate(lengths.tolist())
    )
