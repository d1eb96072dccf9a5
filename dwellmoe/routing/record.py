"""`record`: the routing of a loaded model on given texts, as one trace.

Letters: B texts of a batch, T tokens of a text (padding included).
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.families.padding import depends_on_padding
from dwellmoe.families.registry import config_of
from dwellmoe.routing.router_tap import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder


def record(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    batch_size: int = 8,
    max_tokens: int | None = None,
    gate_probs: bool = False,
) -> RoutingTrace:
    """The experts that `model`, a causal language model of transformers, chooses for each token of `texts`.

    Each text is one request, numbered in the given order, and runs through the model in one causal pass
    (teacher forcing). That routes its tokens exactly as if they had been decoded one at a time, so they count
    as decode; only a token that the tokenizer puts in front of every text (BOS) counts as prefill. Texts of
    like length run together, `batch_size` at a time, or each alone where padding would change its routing
    (sparse attention); padding is not recorded.

    `max_tokens` leaves out the rest of a longer text; `gate_probs` also keeps the full distribution of every
    router, which `gds` needs and which takes E / K times the space. The trace carries the model's name, its
    layer ids and the bytes of one expert a layer.

    Raises UserError for a model without MoE layers, for no texts at all and for a text without tokens.
    """
    rows = _encode(tokenizer, texts, max_tokens)
    return record_rows(model, tokenizer, rows, batch_size=batch_size, gate_probs=gate_probs)


def record_rows(
    model: Any,
    tokenizer: Any,
    rows: Sequence[list[int]],
    *,
    batch_size: int = 8,
    gate_probs: bool = False,
    progress: Progress | None = None,
) -> RoutingTrace:
    """As `record`, of texts that are token ids already."""
    layers = find_moe_layers(model)
    batch_size = 1 if depends_on_padding(model) else batch_size
    recorder = TraceRecorder(layers, gate_probs)
    longest_first = sorted(range(len(rows)), key=lambda request: -len(rows[request]))
    with _evaluation_mode(model), torch.inference_mode():
        for begin in range(0, len(rows), batch_size):
            requests = longest_first[begin : begin + batch_size]
            ids_BT, valid_BT = _padded([rows[request] for request in requests], tokenizer)
            with RouterTap(model, layers, [recorder]):
                model(
                    input_ids=ids_BT.to(model.device),
                    attention_mask=valid_BT.to(model.device),
                    use_cache=False,
                    **_few_logits(model),
                )
            recorder.add(requests, valid_BT, _decoded(ids_BT, tokenizer), ids_BT)
            if progress:
                progress(min(begin + batch_size, len(rows)), len(rows))
    trace = recorder.trace(
        model=Path(getattr(config_of(model), "name_or_path", "")).name,
        source="teacher_forced",
        expert_bytes=[expert_bytes(model, layer) for layer in layers],
    )
    return trace.take(np.argsort(trace.request, kind="stable"))


def _encode(tokenizer: Any, texts: Iterable[str], max_tokens: int | None) -> list[list[int]]:
    if isinstance(texts, str):
        raise UserError("record: texts must be a list of texts, got one text")
    texts = list(texts)
    if not texts:
        raise UserError("record: texts is empty")
    rows = tokenizer(texts, truncation=max_tokens is not None, max_length=max_tokens)["input_ids"]
    for request, row in enumerate(rows):
        if not row:
            raise UserError(f"record: texts[{request}] has no tokens: {texts[request]!r:.40}")
    return rows


def _few_logits(model: Any) -> dict[str, int]:
    """Has the model compute the last token's logits alone, if it can: all of them may not fit into memory."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    accepted = inspect.signature(inner.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


@contextmanager
def _evaluation_mode(model: Any) -> Iterator[None]:
    """Without dropout and router noise; a model that was training goes on training."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _padded(rows: Sequence[list[int]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, T], padded on the right."""
    ids_BT = pad_sequence(
        [torch.tensor(row) for row in rows], batch_first=True, padding_value=tokenizer.pad_token_id or 0
    )
    lengths_B1 = torch.tensor([len(row) for row in rows])[:, None]
    return ids_BT, (torch.arange(ids_BT.shape[1]) < lengths_B1).long()


def _decoded(ids_BT: Tensor, tokenizer: Any) -> Tensor:
    """bool [B, T]: everything but a leading BOS."""
    decoded_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    if tokenizer.bos_token_id is not None:
        decoded_BT[:, 0] = ids_BT[:, 0] != tokenizer.bos_token_id
    return decoded_BT
