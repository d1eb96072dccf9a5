"""ScoutGate: what it sees of a request, and that it learns which experts follow from token ids."""

import dataclasses

import numpy as np
import pytest
import torch

from dwellmoe.cache.prediction import quality, used_of
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.scoutgate import loss, train_scoutgate
from dwellmoe.routing.scoutgate import PADDING, WINDOW, predict_scoutgate, windows
from tests.cache.traces import random_trace

VOCABULARY, EXPERTS, LAYERS, TOP_K = 20, 8, 2, 2


def by_token(steps=600, requests=12, seed=0) -> RoutingTrace:
    """A trace in which a token's experts follow from its id and from the one before, requests one by one."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VOCABULARY, steps).astype(np.int32)
    before = np.append(0, ids[:-1])
    experts = np.stack([np.stack([ids % 4, 4 + before % 4], 1), np.stack([ids // 5, 4 + ids % 4], 1)], 1)
    request = np.repeat(np.arange(requests, dtype=np.int32), steps // requests)
    first = np.append(True, request[1:] != request[:-1])
    phase = (~first).astype(np.uint8)
    return RoutingTrace(experts.astype(np.uint16), phase, request, EXPERTS, token_ids=ids)


def test_a_window_ends_with_the_running_token_and_knows_the_prompt():
    trace = random_trace(0, steps=90, requests=3, prefill=0.5)
    trace = dataclasses.replace(trace, token_ids=np.arange(90, dtype=np.int32))
    found = windows(trace)
    assert len(found) == len(np.concatenate(used_of(trace))) == (trace.phase == 1).sum()
    for row, ids in zip(np.flatnonzero(trace.phase == 1), found, strict=True):
        start = np.flatnonzero(trace.request == trace.request[row])[0]
        expected = [t if t >= start else PADDING for t in range(row - WINDOW + 1, row + 1)]
        assert ids.tolist() == expected


def test_it_learns_what_token_ids_tell():
    trace = by_token()
    parts = ([*range(8)], [8, 9], [10, 11])
    train, validation, held_out = (trace.take(np.isin(trace.request, part)) for part in parts)
    embedding = torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(0))
    gate, log = train_scoutgate(embedding, train, validation, epochs=12)
    assert min(row["validation_loss"] for row in log) < log[0]["validation_loss"]
    predicted, used = predict_scoutgate(gate, held_out), np.concatenate(used_of(held_out))
    assert predicted.shape == used.shape and quality(predicted, used)["recall_at_k"] > 0.7
    again, _ = train_scoutgate(embedding, train, validation, epochs=12)
    assert np.array_equal(predict_scoutgate(again, held_out), predicted)


def test_cardinality_is_pulled_towards_k():
    used = torch.zeros(1, 1, 4)
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    loss(logits, used, top_k=4).backward()
    plain = torch.zeros(1, 1, 4, requires_grad=True)
    loss(plain, used, top_k=2).backward()
    assert logits.grad is not None and plain.grad is not None
    assert (logits.grad < plain.grad).all()


def test_a_trace_without_token_ids_is_refused():
    with pytest.raises(UserError, match="token_ids"):
        windows(random_trace(0))
