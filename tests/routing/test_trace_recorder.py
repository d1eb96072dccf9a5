"""Traces of padded batches and of generation against the same requests run alone."""

import numpy as np
import pytest
import torch

from dwellmoe.cache.trace import DECODE, PREFILL
from dwellmoe.errors import UserError
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.routing import RouterTap, TraceRecorder, generated_lengths
from tests.tiny_models import tiny_model

PROMPTS = ([5, 9, 11, 7, 30], [8, 21], [40, 3, 17])
PAD = 0


def padded(rows, side):
    """Token ids and attention mask of rows of unequal length, padded on one side."""
    width = max(map(len, rows))
    ids = [
        [*row, *[PAD] * (width - len(row))] if side == "right" else [*[PAD] * (width - len(row)), *row]
        for row in rows
    ]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    mask = mask if side == "right" else [row[::-1] for row in mask]
    return torch.tensor(ids), torch.tensor(mask)


def column(trace, name):
    """An optional tensor of a trace that these tests ask for, as numbers wide enough to compare."""
    array = getattr(trace, name)
    assert array is not None
    return array.astype(np.float32)


def recorder_of(model, **options):
    return TraceRecorder(find_moe_layers(model), **options)


def forward(model, recorder, ids, mask):
    with torch.no_grad(), RouterTap(model, recorder.moe_layers, [recorder]):
        model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp_min(0))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["olmoe", "deepseek_v3"])
def test_a_padded_batch_reads_like_its_requests_alone(family, side):
    model = tiny_model(family)
    together, alone = recorder_of(model, gate_probs=True), recorder_of(model, gate_probs=True)
    ids, mask = padded(PROMPTS, side)
    forward(model, together, ids, mask)
    together.add([4, 5, 6], mask, ids > 10, ids)
    for request, row in zip([4, 5, 6], PROMPTS, strict=True):
        ids, mask = padded([row], side)
        forward(model, alone, ids, mask)
        alone.add([request], mask, ids > 10, ids)
    found, expected = together.trace(model="tiny", source="teacher_forced"), alone.trace()
    for name in ("experts", "request", "phase", "token_ids"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert np.allclose(column(found, "weights"), column(expected, "weights"), atol=2e-3)
    assert np.allclose(column(found, "gate_probs"), column(expected, "gate_probs"), atol=2e-3)
    assert column(found, "token_ids").tolist() == [token for row in PROMPTS for token in row]
    assert found.request.tolist() == [4] * 5 + [5] * 2 + [6] * 3
    assert set(found.phase[column(found, "token_ids") > 10]) == {DECODE}
    assert found.layer_ids == tuple(layer.layer_id for layer in together.moe_layers)


def test_experts_stand_in_router_order_and_the_gate_adds_up():
    model = tiny_model("deepseek_v3")
    recorder = recorder_of(model, gate_probs=True)
    ids, mask = padded(PROMPTS, "right")
    forward(model, recorder, ids, mask)
    recorder.add([0, 1, 2], mask, mask)
    trace = recorder.trace()
    assert (np.diff(column(trace, "weights"), axis=-1) <= 0).all()
    assert np.allclose(column(trace, "gate_probs").sum(-1), 1, atol=1e-2)


def test_generation_reads_like_each_request_alone():
    """Rows end at different lengths; what a finished row still computes is in no trace."""
    model, eos = tiny_model("olmoe", seed=3), [2, *range(30, 45)]
    generate = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": eos, "pad_token_id": PAD}
    together, alone = recorder_of(model), recorder_of(model)
    lengths = [generate_and_add(model, together, PROMPTS, [0, 1, 2], eos, generate)]
    lengths += [generate_and_add(model, alone, [row], [at], eos, generate) for at, row in enumerate(PROMPTS)]
    assert len(set(lengths[0])) > 1, "the test wants rows of different lengths"
    assert lengths[0] == [length for row in lengths[1:] for length in row]
    found, expected = together.trace(source="generated"), alone.trace()
    for name in ("experts", "request", "phase", "token_ids"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    for request, row in enumerate(PROMPTS):
        phases = found.phase[found.request == request].tolist()
        assert phases == [PREFILL] * len(row) + [DECODE] * (lengths[0][request] - 1)


def generate_and_add(model, recorder, rows, requests, eos, options):
    ids, mask = padded(rows, "left")
    with RouterTap(model, recorder.moe_layers, [recorder]):
        sequences = model.generate(ids, attention_mask=mask, **options)
    lengths = generated_lengths(sequences, ids.shape[1], eos)
    recorder.add_generated(requests, mask, sequences, lengths)
    return lengths.tolist()


def test_packed_rows_keep_their_requests():
    model = tiny_model("olmoe")
    recorder = recorder_of(model)
    ids = torch.tensor([[5, 9, 11, 8, 21]])
    forward(model, recorder, ids, torch.ones_like(ids))
    recorder.add([[0, 0, 0, 1, 1]], torch.ones_like(ids), torch.zeros_like(ids))
    assert recorder.trace().request.tolist() == [0, 0, 0, 1, 1]


def test_masks_must_cover_what_ran_and_something_must_have_run():
    model = tiny_model("olmoe")
    recorder = recorder_of(model)
    with pytest.raises(UserError, match="nothing was recorded"):
        recorder.trace()
    forward(model, recorder, *padded(PROMPTS, "right"))
    with pytest.raises(ValueError, match=r"15 tokens ran inside the tap: the masks have shape \[1, 5\]"):
        recorder.add([0], np.ones((1, 5)), np.ones((1, 5)))


def test_trace_starts_anew_and_carries_the_expert_size():
    model = tiny_model("olmoe")
    recorder = recorder_of(model)
    sizes = [expert_bytes(model, layer) for layer in recorder.moe_layers]
    for request in range(2):
        ids, mask = padded(PROMPTS[:1], "right")
        forward(model, recorder, ids, mask)
        recorder.add([request], mask, mask)
        trace = recorder.trace(expert_bytes=sizes)
        assert (trace.steps, trace.expert_bytes) == (5, (3 * 48 * 32 * 4,) * 3)
        assert set(trace.request) == {request}
