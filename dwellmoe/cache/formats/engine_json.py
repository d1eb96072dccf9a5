"""Responses of vLLM and SGLang with the experts of each token: JSON, one object, a list, or one on each line.

vLLM    `choices[i].routed_experts`, and `prompt_routed_experts` where the version returns the prompt apart: a
        .npy file in base64, or nested lists, [tokens, layers, top_k]
SGLang  `meta_info.routed_experts` of /generate, `sglext.routed_experts` of the OpenAI endpoints: int32 in
        base64 without a shape, which `expert_ids_schema` states or --top_k; or `input_expert_ids` and
        `output_expert_ids`
Each choice is a request. A prompt of P tokens and an answer of C tokens have P + C - 1 rows, for the last
token never runs: the last C - 1 are decode. Rows that were not asked for are missing at the beginning.
"""

import base64
import binascii
import io
import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dwellmoe.cache.formats import check_num_experts
from dwellmoe.cache.returned_experts import ReturnedExperts, signed_ids, trace_of
from dwellmoe.cache.text_trace import read_lines
from dwellmoe.cache.trace import DECODE, SIGNED_EMPTY, RoutingTrace
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import replacing
from dwellmoe.log import warn_once

SUFFIXES = (".json", ".jsonl")
HINTS = ("num_experts", "prompt_tokens", "top_k")
STREAM = "data:"
STREAM_END = "[DONE]"
PARTITIONS = ("input_expert_ids", "output_expert_ids")
NONE_RETURNED = (
    "holds no routed experts: start the server with --enable-return-routed-experts; SGLang also wants "
    "return_routed_experts in the request"
)


def recognise(head: bytes) -> bool:
    return head.lstrip().startswith((b"{", b"[", STREAM.encode())) and b"\0" not in head


def read(
    path: Path, num_experts: int | None = None, prompt_tokens: int | None = None, top_k: int | None = None
) -> RoutingTrace:
    """`prompt_tokens` and `top_k` where the responses do not state them."""
    num_experts = check_num_experts(path, num_experts)
    requests: list[ReturnedExperts] = []
    model = ""
    for where, response in _responses(path):
        try:
            requests += _requests(response, where, prompt_tokens, top_k)
        except (TypeError, ValueError, KeyError, LookupError, AttributeError, binascii.Error) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: its routed experts cannot be read: {first_line(error)}") from None
        model = model or str(response.get("model") or "")
    if not requests:
        raise UserError(f"{path}: {NONE_RETURNED}")
    return trace_of(path, requests, num_experts, model)


def _responses(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each response, with the place where it stands. UserError for what is not JSON, or no object."""
    lines = read_lines(path)
    try:
        whole = json.loads("\n".join(lines))
        found = whole if isinstance(whole, list) else [whole]
        places = [f"{path}, response {number}" for number in range(1, len(found) + 1)]
    except (ValueError, RecursionError):
        numbered = [(number, line.strip().removeprefix(STREAM)) for number, line in enumerate(lines, 1)]
        numbered = [(number, text) for number, text in numbered if text.strip() not in ("", STREAM_END)]
        places = [f"{path}, line {number}" for number, _ in numbered]
        found = [_parsed(place, text) for place, (_, text) in zip(places, numbered, strict=True)]
    for place, response in zip(places, found, strict=True):
        if not isinstance(response, dict):
            raise UserError(f"{place}: expected a response, an object, got {response!r:.40}")
        yield place, response


def _parsed(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON: {first_line(error)}") from None


def _requests(
    response: dict[str, Any], where: str, prompt_tokens: int | None, top_k: int | None
) -> Iterator[ReturnedExperts]:
    """A request for each choice of one response; nothing where no experts were returned."""
    if "meta_info" in response:
        yield from _of_sglang(response["meta_info"], response["meta_info"], where, prompt_tokens, top_k)
    if response.get("sglext"):
        yield from _of_sglang(response["sglext"], _usage(response), where, prompt_tokens, top_k)
    choices = response.get("choices") or ()
    prompt = _decoded(response.get("prompt_routed_experts"))
    for number, choice in enumerate(choices):
        place = f"{where}, choice {number}"
        if choice.get("sglext"):
            yield from _of_sglang(choice["sglext"], _usage(response), place, prompt_tokens, top_k)
        usage = _usage(response) if len(choices) == 1 else {}  # of several choices it is the sum
        if (chosen := _decoded(choice.get("routed_experts"))) is not None:
            yield _of_vllm(chosen, None if number else prompt, usage, place, prompt_tokens)


def _usage(response: Mapping[str, Any]) -> dict[str, Any]:
    return response.get("usage") or {}


def _of_vllm(
    chosen: np.ndarray,
    prompt: np.ndarray | None,
    usage: dict[str, Any],
    where: str,
    prompt_tokens: int | None,
) -> ReturnedExperts:
    if chosen.ndim != 3:
        raise UserError(f"{where}: expected routed experts [tokens, layers, top_k], got {list(chosen.shape)}")
    if prompt is not None:
        return ReturnedExperts(np.concatenate([prompt, chosen]), len(prompt), where)
    return ReturnedExperts(chosen, _prompt_rows(len(chosen), usage, where, prompt_tokens), where)


def _of_sglang(
    fields: dict[str, Any],
    counts: dict[str, Any],
    where: str,
    prompt_tokens: int | None,
    top_k: int | None,
) -> Iterator[ReturnedExperts]:
    schema = fields.get("expert_ids_schema") or {}
    apart = [_decoded(fields.get(name)) for name in PARTITIONS]
    parts = [part for part in apart if part is not None]
    whole = _decoded(fields.get("routed_experts"))
    flat = whole if whole is not None else np.concatenate(parts) if parts else None
    if flat is None or flat.size == 0:
        return
    chosen = flat if flat.ndim == 3 else _shaped(flat, schema, counts, where, top_k)
    if whole is None and apart[1] is None:
        prompt_rows = len(chosen)  # of the input alone
    else:
        prompt_rows = _prompt_rows(len(chosen), counts, where, prompt_tokens)
    yield ReturnedExperts(_without_dense(chosen, schema), prompt_rows, where)


def _shaped(
    flat: np.ndarray, schema: dict[str, Any], counts: dict[str, Any], where: str, top_k: int | None
) -> np.ndarray:
    """[tokens, layers, top_k] of ids in a row."""
    if schema:
        return flat.reshape(-1, schema["num_layers"], schema["top_k"])
    if top_k is None or not _states_tokens(counts):
        raise UserError(
            f"{where}: its routed experts have no shape: give --top_k, and keep prompt_tokens and "
            "completion_tokens "
            "in the response"
        )
    rows = counts["prompt_tokens"] + counts["completion_tokens"] - 1
    if rows < 1 or top_k < 1 or flat.size % (rows * top_k):
        raise UserError(
            f"{where}: {flat.size} ids are no whole number of layers for {rows} tokens (prompt_tokens + "
            f"completion_tokens - 1) and --top_k {top_k}"
        )
    return flat.reshape(rows, -1, top_k)


def _without_dense(chosen: np.ndarray, schema: dict[str, Any]) -> np.ndarray:
    """The same with empty slots in the layers that have no experts, if the response states them."""
    if "moe_layer_ids" not in schema:
        return chosen
    dense = np.isin(np.arange(chosen.shape[1]), schema["moe_layer_ids"], invert=True)
    return np.where(dense[:, None], SIGNED_EMPTY, chosen.astype(np.int32))


def _prompt_rows(rows: int, counts: dict[str, Any], where: str, prompt_tokens: int | None) -> int:
    """How many rows are prefill: all but the last completion_tokens - 1."""
    if prompt_tokens is not None:
        return min(prompt_tokens, rows)
    if not _states_tokens(counts):
        warn_once(
            f"{where}: does not state its tokens, so all rows count as decode: --prompt_tokens states them"
        )
        return 0
    return max(0, rows - max(0, counts["completion_tokens"] - 1))


def _states_tokens(counts: dict[str, Any]) -> bool:
    return all(type(counts.get(name)) is int for name in ("prompt_tokens", "completion_tokens"))


def _decoded(payload: Any) -> np.ndarray | None:
    """The ids of one field, in whatever form; [ids] where it does not state a shape."""
    if payload is None:
        return None
    if isinstance(payload, list):
        return _whole(np.array(payload))
    if isinstance(payload, dict):  # routers between client and engine pass the shape beside the data
        found = np.frombuffer(_bytes(payload["data"]), payload.get("dtype", "int32"))
        return _whole(found[: prod(payload["shape"])].reshape(payload["shape"]))
    data = _bytes(payload)
    if data.startswith(b"\x93NUMPY"):
        return _whole(np.load(io.BytesIO(data), allow_pickle=False))
    return np.frombuffer(data, "<i4")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _whole(ids: np.ndarray) -> np.ndarray:
    if ids.dtype.kind not in "iu" and ids.size:
        raise ValueError(f"expected whole numbers, got {ids.dtype} {list(ids.shape)}")
    return ids


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes each request as a response of vLLM, one on each line; its prompt's rows come first."""
    chosen = signed_ids(trace, path)
    with replacing(path) as file:
        for request in dict.fromkeys(trace.request.tolist()):
            mine = np.flatnonzero(trace.request == request)
            mine = mine[np.argsort(trace.phase[mine], kind="stable")]
            decoded = int((trace.phase[mine] == DECODE).sum())
            file.write(_response(trace.model, chosen[mine], decoded).encode() + b"\n")


def _response(model: str, chosen: np.ndarray, decoded: int) -> str:
    buffer = io.BytesIO()
    np.save(buffer, chosen, allow_pickle=False)
    usage = {"prompt_tokens": len(chosen) - decoded, "completion_tokens": decoded + 1}
    choice = {"index": 0, "routed_experts": base64.b64encode(buffer.getvalue()).decode()}
    return json.dumps({"model": model, "choices": [choice], "usage": usage})
