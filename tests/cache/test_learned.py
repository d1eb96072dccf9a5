"""Learned policies: what they see when they choose, and that serving computes what was trained."""

import dataclasses

import numba
import numpy as np
import pytest

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.learned import nets
from dwellmoe.cache.learned.nets import evaluate, nets_of
from dwellmoe.cache.learned.routing_statistics import (
    DECAYS,
    FOLLOWING,
    LAYOUT,
    PRIOR_PSEUDOCOUNT,
    PSEUDOCOUNT,
)
from dwellmoe.cache.learned.weights import load_weights, save_weights
from dwellmoe.cache.policies import ml_cecar, ml_flashmoe
from dwellmoe.cache.policies.base import policy_names
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import EMPTY
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.tables import distances, habit_features, recency_and_frequency, requested
from tests.cache.traces import random_trace

LEARNED = [name for name in policy_names() if name.startswith("ml_")]
LAYERS, EXPERTS, TOP_K, CAPACITY = 3, 12, 3, 6


def drawn(policy, seed=0, inputs=2, hidden=5, outputs=1, layers=LAYERS, prefixes=("",)):
    """Random weights under the names of a file of `policy`."""
    rng = np.random.default_rng(seed)
    shapes = {0: (hidden, inputs), 1: (hidden, hidden), 2: (outputs, hidden)}
    found = {}
    for prefix in prefixes:
        for at, (rows, columns) in shapes.items():
            found[f"{prefix}{at}.weight"] = rng.normal(0, 1, (layers, rows, columns))
            found[f"{prefix}{at}.bias"] = rng.normal(0, 1, (layers, rows))
    return {name: value.astype(np.float32) for name, value in found.items()}


def written(tmp_path, policy, layout, tensors, **facts):
    path = tmp_path / f"{policy}.safetensors"
    save_weights(path, policy, layout, tensors, facts)
    return f"{policy}:weights={path}"


def slow_evictions(trace, layer, score):
    """Evictions of a layer's cache that gives up the lowest score(step, expert), last use breaking ties."""
    resident, last, evicted = [], {}, []
    for step in range(trace.steps):
        ids = [int(e) for e in trace.experts[step, layer] if e != EMPTY]
        resident += [e for e in ids if e not in resident]
        while len(resident) > CAPACITY:
            leaving = min((e for e in resident if e not in ids), key=lambda e: (score(step, e), last[e]))
            resident.remove(leaving)
            evicted.append(leaving)
        for position, e in enumerate(ids):
            last[e] = (step, position)
    return evicted


def live_evictions(trace, spec):
    """Of each layer, all rows of the trace one after the other."""
    cache = ExpertCache(spec, layers=LAYERS, experts=EXPERTS, capacity=CAPACITY)
    found = [[] for _ in range(LAYERS)]
    for row in trace.experts:
        for layer in range(LAYERS):
            gone = cache.request(layer, row[layer][row[layer] != EMPTY]).evict
            found[layer].extend(flat_id - layer * EXPERTS for flat_id in gone)
    return found


def slow_uses(trace, layer):
    """r and f [T, E] after each step's uses, written from the definition."""
    r, f = np.zeros((2, trace.steps, EXPERTS))
    last, count = {}, dict.fromkeys(range(EXPERTS), 0)
    for step in range(trace.steps):
        for e in trace.experts[step, layer]:
            last[int(e)] = step
            count[int(e)] += 1
        for e in range(EXPERTS):
            lag = step - last[e] + 1 if e in last else np.inf
            r[step, e] = 1 / lag + 1e-6
            f[step, e] = count[e] / (max(count.values()) + 1e-6)
    return r, f


def test_features_of_training_are_the_definition():
    trace = random_trace(0, steps=80)
    for layer in range(LAYERS):
        x_TI = recency_and_frequency(*requested(trace, layer), EXPERTS)
        assert np.allclose(x_TI, np.concatenate(slow_uses(trace, layer), axis=1), rtol=1e-6)


@pytest.mark.slow
def test_ml_cecar_serves_the_nets_it_was_given(tmp_path):
    """Scores after this step's uses, horizons weighed by C and the file's own C0, this step protected."""
    trace, c0 = random_trace(1, steps=150), 9
    tensors = drawn("ml_cecar", prefixes=("short.", "long."))
    spec = written(tmp_path, "ml_cecar", ml_cecar.LAYOUT, tensors, c0=c0)
    w2 = min(1, CAPACITY / c0) / 2
    short, long = nets_of(tensors, "short."), nets_of(tensors, "long.")
    live = live_evictions(trace, spec)
    for layer in range(LAYERS):
        x = np.stack(slow_uses(trace, layer), axis=-1).astype(np.float32)
        both = [evaluate(net, x.reshape(-1, 2), layer).reshape(x.shape[:2]) for net in (short, long)]
        keep = -((1 - w2) * both[0] + w2 * both[1])
        table = ml_cecar.tabulate(tensors, w2)[layer]
        looked_up = np.vectorize(lambda r, f, t=table: ml_cecar.look_up.py_func(t, r, f))(
            x[..., 0], x[..., 1]
        )
        off = np.abs(looked_up - keep) / np.ptp(keep)  # largest where the nets' absolute value has its kink
        assert off.max() < 1e-2 and off.mean() < 1e-4
        assert live[layer] == slow_evictions(trace, layer, lambda t, e, keep=looked_up: keep[t, e])


@pytest.mark.slow
def test_ml_flashmoe_serves_the_layout_it_was_trained_with(tmp_path):
    trace = random_trace(2, steps=150)
    tensors = drawn("ml_flashmoe", inputs=2 * EXPERTS, hidden=16, outputs=EXPERTS)
    spec = written(tmp_path, "ml_flashmoe", ml_flashmoe.LAYOUT, tensors)
    live = live_evictions(trace, spec)
    for layer in range(LAYERS):
        x_TI = recency_and_frequency(*requested(trace, layer), EXPERTS)
        keep = -evaluate(nets_of(tensors), x_TI, layer)
        assert live[layer] == slow_evictions(trace, layer, lambda t, e, keep=keep: keep[t, e])
        blocked = x_TI.reshape(-1, 2, EXPERTS)
        mixed = -evaluate(nets_of(tensors), blocked.transpose(0, 2, 1).reshape(len(x_TI), -1), layer)
        assert live[layer] != slow_evictions(trace, layer, lambda t, e, keep=mixed: keep[t, e])


@numba.njit
def _run(weights, layer, row, h, g, y):
    nets.run(weights, layer, row, h, g, y)  # only compiled code can call it


def test_compiled_net_is_the_plain_one():
    rng = np.random.default_rng(0)
    tensors = nets_of(drawn("", inputs=21, hidden=13, outputs=9))
    x = rng.normal(size=(4, 21)).astype(np.float32)
    h, g, y = (np.zeros(size, np.float32) for size in (13, 13, 9))
    for row in x:
        _run(tensors.transposed(np.arange(2)), 1, row, h, g, y)
        assert np.allclose(y, evaluate(tensors, row[None], 1)[0], atol=1e-5)


def slow_statistics(trace, layer, decays):
    """Statistics of the routing so far [T, E, F], written from their description."""
    found = np.zeros((trace.steps, EXPERTS, len(decays) + len(FOLLOWING)))
    sets = [[int(e) for e in row] for row in trace.experts[:, layer]]
    chance = TOP_K / EXPERTS
    for step in range(trace.steps):
        uses = np.array([[e in sets[t] for e in range(EXPERTS)] for t in range(step + 1)], float)
        usual = (uses.sum(axis=0) + PRIOR_PSEUDOCOUNT * chance) / (step + 1 + PRIOR_PSEUDOCOUNT)
        for pace, decay in enumerate(decays):
            weight = decay ** np.arange(step, -1, -1)
            found[step, :, pace] = np.log((weight @ uses + chance) / ((weight.sum() + 1) * chance))
        for kind, (row, back) in enumerate(FOLLOWING):
            for before in sets[step - back] if step >= back else []:
                times = [t for t in range(step - row) if before in sets[t]]
                after = sum(uses[t + row + 1] for t in times) if times else np.zeros(EXPERTS)
                likelier = (after / usual + PSEUDOCOUNT) / (len(times) + PSEUDOCOUNT)
                found[step, :, len(decays) + kind] += np.log(likelier) / TOP_K
    return found


@pytest.mark.slow
def test_ml_habits_serves_the_features_it_was_trained_with(tmp_path):
    trace = random_trace(3, steps=60)
    weight = np.array([0.7, 0.4, 1.1, -0.3, 0.8], np.float32)
    live = live_evictions(trace, written(tmp_path, "ml_habits", LAYOUT, {"weight": weight}))
    for layer in range(LAYERS):
        x_TEF = habit_features(*requested(trace, layer), EXPERTS)
        assert np.allclose(x_TEF, slow_statistics(trace, layer, DECAYS))
        assert live[layer] == slow_evictions(trace, layer, lambda t, e, keep=x_TEF @ weight: keep[t, e])


def test_labels_count_from_after_the_step():
    trace = random_trace(4, steps=50)
    found = distances(*requested(trace, 1), EXPERTS)
    for step in range(trace.steps):
        for e in range(EXPERTS):
            later = [t for t in range(step + 1, trace.steps) if e in trace.experts[t, 1]]
            assert found[step, e] == (later[0] - step if later else 1 << 30)


@pytest.mark.parametrize("name", LEARNED)
def test_a_pruned_expert_is_no_access(name):
    """A slot that a strategy left empty leaves no trace in what is learned from."""
    trace = random_trace(5, steps=120)
    pruned = trace.experts.copy()
    pruned[::2, :, TOP_K - 1] = EMPTY
    rows = [[row[row != EMPTY] for row in step] for step in pruned]
    cache = ExpertCache(name, layers=LAYERS, experts=EXPERTS, capacity=CAPACITY)
    asked_for = sum(len(ids) for step in rows for ids in step)
    for step in rows:
        for layer, ids in enumerate(step):
            cache.request(layer, ids)
    counts = cache.counts()
    assert counts["hits"] + counts["misses"] == asked_for
    emptied = dataclasses.replace(trace, experts=pruned, phase=np.ones(120, np.uint8))
    row = replay(emptied, name, CAPACITY)
    assert (row.hits, row.misses) == (counts["hits"], counts["misses"])


@pytest.mark.parametrize("name", LEARNED)
def test_the_score_is_renewed_at_every_request(name):
    """Uncounted warm-up steps teach as counted ones do: there is no mode in which a policy does not look."""
    trace = random_trace(6, steps=150)
    found = []
    for counted in (True, False):
        cache = ExpertCache(name, layers=LAYERS, experts=EXPERTS, capacity=CAPACITY)
        for row in trace.experts[:75]:
            for layer in range(LAYERS):
                cache.request(layer, row[layer], counted=counted)
        steps = [cache.request(layer, row[layer]) for row in trace.experts[75:] for layer in range(LAYERS)]
        found.append([step.hits for step in steps])
    assert found[0] == found[1]


def test_wrong_weights_are_refused(tmp_path):
    good = {"weight": np.ones(5, np.float32)}
    for policy, layout, tensors, message in (
        ("ml_cecar", LAYOUT, good, "policy must be 'ml_habits', got 'ml_cecar'"),
        ("ml_habits", "f; r", good, "layout must be"),
        ("ml_habits", LAYOUT, {"weight": np.full(5, np.nan)}, "NaN"),
    ):
        path = tmp_path / f"{message[:6]}{policy}.safetensors"
        save_weights(path, policy, layout, tensors, {})
        with pytest.raises(UserError, match=message):
            load_weights(str(path), "ml_habits", LAYOUT)
    with pytest.raises(UserError, match="cannot be read"):
        replay(random_trace(0), "ml_habits:weights=none.safetensors", 5)
