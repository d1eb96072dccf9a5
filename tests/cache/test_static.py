"""`static` keeps the experts that another trace used most, and nothing else about it."""

import numpy as np
import pytest

from dwellmoe.cache.policies.base import Shape, parse_policy
from dwellmoe.cache.replay.replay import replay
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.fit import FitSettings, fit
from dwellmoe.eviction_training.requests import split_by_request
from tests.cache.reference import ReferenceCache, flatten, requests_of
from tests.cache.traces import random_trace


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """(spec, uses [L, E] of the training requests)."""
    out = tmp_path_factory.mktemp("static") / "uses.safetensors"
    trace, settings = random_trace(0, steps=200, requests=8), FitSettings(capacity=5)
    fit(trace, "static", str(out), settings)
    train = split_by_request(trace, "decode", settings.validation, settings.seed).train
    uses = [[int((train.experts[:, layer] == e).sum()) for e in range(12)] for layer in range(3)]
    return f"static:weights={out}", uses


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_it_evicts_what_the_other_trace_used_least(fitted, scope, access):
    spec, uses = fitted
    trace, capacity = random_trace(1, steps=150), 5 if scope == "layer" else 14
    counted = uses if scope == "layer" else [np.concatenate(uses)]
    caches = zip(counted, flatten(requests_of(trace), scope, 3, 12, "never"), strict=True)
    runs = [ReferenceCache("static", capacity, counted=own).run(requests, access) for own, requests in caches]
    hits, misses, *_ = np.array([run[:3] for run in runs]).sum(axis=0)
    row = replay(trace, spec, capacity, scope=scope, access=access)
    assert (row.hits, row.misses) == (hits, misses)


def test_its_file_is_needed_and_must_fit(fitted):
    with pytest.raises(UserError, match="weights=FILE"):
        replay(random_trace(1), "static", 5)
    policy, options = parse_policy(fitted[0])
    with pytest.raises(UserError, match="uses"):
        policy.allocate(Shape(caches=3, experts=16, capacity=np.full(3, 6), layers=3), **options)
