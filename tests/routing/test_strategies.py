"""The contract of routing strategies over every file, and each formula against a slow, obvious way of it."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as draw

from dwellmoe.cache.trace import SIGNED_EMPTY as EMPTY
from dwellmoe.cache.weight_ratios import Thresholds, kept_counts, thresholds_of
from dwellmoe.errors import UserError
from dwellmoe.routing.strategies import STRATEGIES, load_strategy
from dwellmoe.routing.strategies.base import NEVER
from tests.cache.traces import random_trace
from tests.routing.contexts import EXPERTS, TOP_K, context, specs, thresholds_file

NO_BONUS = {"mocce": "mocce:strength=0", "max_rank": "max_rank:within=4"}
NO_BONUS |= {name: f"{name}:scale=0" for name in ("cecar", "lru", "lfu", "random", "constant")}
STEEP, FLAT = 1e30, 0.0


def sets(chosen_TK):
    return [set(row) - {EMPTY} for row in chosen_TK.tolist()]


@pytest.fixture(params=STRATEGIES.names())
def spec(request, tmp_path):
    return specs(tmp_path, 1.5)[request.param]


@pytest.mark.parametrize("resident", [0, 2, 5, 12])
def test_a_choice_is_distinct_experts_and_the_same_each_time(spec, resident):
    for seed in range(5):
        seen = context(seed, resident=resident)
        before = [np.array(part) for part in seen if isinstance(part, np.ndarray)]
        chosen_TK = load_strategy(spec).choose(seen)
        assert chosen_TK.shape == seen.own_TK.shape
        for row in chosen_TK.tolist():
            kept = [expert for expert in row if expert != EMPTY]
            assert 1 <= len(kept) == len(set(kept)) and all(0 <= expert < EXPERTS for expert in kept)
        assert (load_strategy(spec).choose(seen) == chosen_TK).all()
        after = [part for part in seen if isinstance(part, np.ndarray)]
        assert all((one == other).all() for one, other in zip(before, after, strict=True)), "it is pure"


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_all_resident_and_no_bonus_is_the_routers_own_choice(name, tmp_path):
    spec = NO_BONUS.get(name, specs(tmp_path, STEEP)[name])
    for seed in range(5):
        seen = context(seed, resident=EXPERTS)
        assert sets(load_strategy(spec).choose(seen)) == sets(seen.own_TK)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_ties_go_to_the_routers_own_choice(name, tmp_path):
    spec = NO_BONUS.get(name, specs(tmp_path, STEEP)[name])
    own_TK = np.array([[9, 2, 11, 4]])
    flat = np.zeros((1, EXPERTS))
    seen = context(rows=1, resident=EXPERTS, rank_TE=flat, score_TE=flat + 1 / EXPERTS, own_TK=own_TK)
    assert sets(load_strategy(spec).choose(seen)) == sets(own_TK)


def test_what_the_router_may_not_choose_is_not_chosen(spec):
    """DeepSeek's groups: a resident outside of them stays out, even where residents run out."""
    for seed in range(5):
        seen = context(seed, resident=8)
        rank_TE = np.where(np.arange(EXPERTS) < 6, seen.rank_TE, -np.inf)
        seen = seen._replace(rank_TE=rank_TE, own_TK=np.argsort(-rank_TE, axis=1)[:, :TOP_K])
        assert max(map(max, sets(load_strategy(spec).choose(seen)))) < 6


def test_rows_choose_as_they_would_alone(spec):
    if spec == "random":
        pytest.skip("draws for each row")
    seen = context(3)
    together = load_strategy(spec).choose(seen)
    for row in range(3):
        alone = {name: getattr(seen, name)[row : row + 1] for name in ("rank_TE", "score_TE", "own_TK")}
        assert sets(load_strategy(spec).choose(seen._replace(**alone))) == sets(together[row : row + 1])


def slow_alpha(name, seen, expert):
    residents = [e for e in range(EXPERTS) if seen.resident_E[e]]
    if name == "cecar":
        return 1 - seen.lag_E[expert] / (max(seen.lag_E[e] for e in residents) + 1e-5)
    if name == "lru":
        last = {e: max(seen.step + 1 - seen.lag_E[e], 0) for e in residents}
        return last[expert] / max(last.values())
    if name == "lfu":
        return seen.uses_E[expert] / max(seen.uses_E[e] for e in residents)
    return 0.5


def slow_bonus(name, seen, row, fill, tau, m):
    """Section "Cache-aware routing", `cecar`, line by line for one token."""
    z = seen.rank_TE[row].tolist()
    delta = sorted(z)[-1] - sorted(z)[-1 - m]
    changed = [
        z[e] + delta * slow_alpha(name, seen, e) if seen.resident_E[e] else z[e] for e in range(EXPERTS)
    ]
    ranked = sorted(range(EXPERTS), key=lambda e: -changed[e])
    if fill == "none":
        return set(ranked[:TOP_K])
    kept = ranked[:tau]
    if fill == "drop":
        return set(kept) | {e for e in ranked[tau:TOP_K] if seen.resident_E[e]}
    kept += [e for e in ranked[tau:] if seen.resident_E[e]][: TOP_K - tau]
    kept += [e for e in ranked if e not in kept][: TOP_K - len(kept)]
    return set(kept)


@pytest.mark.parametrize("name", ["cecar", "lru", "lfu", "constant"])
@pytest.mark.parametrize("fill", ["resident", "drop", "none"])
@pytest.mark.parametrize(("tau", "m", "resident"), [(2, 8, 5), (3, 4, 6), (1, 8, 2)])
def test_bonuses_are_the_formula(name, fill, tau, m, resident):
    for seed in range(6):
        seen = context(seed, resident=resident)
        chosen = load_strategy(f"{name}:fill={fill},tau={tau},m={m}").choose(seen)
        assert sets(chosen) == [slow_bonus(name, seen, row, fill, tau, m) for row in range(3)]


def test_tau_defaults_to_the_larger_half_and_m_0_is_k():
    seen = context(2)
    same = ("cecar:tau=2,m=4", "cecar:m=0")
    assert sets(load_strategy(same[0]).choose(seen)) == sets(load_strategy(same[1]).choose(seen))


def test_drop_keeps_tau_and_no_more_where_nothing_is_resident():
    chosen = load_strategy("cecar:fill=drop,tau=3").choose(context(resident=0))
    assert [len(kept) for kept in sets(chosen)] == [3, 3, 3]


def test_random_draws_anew_each_step_and_alike_for_a_seed():
    seen = context(1, resident=9)
    draws = [load_strategy("random:scale=3").choose(seen._replace(step=step)).tolist() for step in range(6)]
    assert len({str(draw) for draw in draws}) > 1
    assert load_strategy("random:scale=3").choose(seen._replace(step=0)).tolist() == draws[0]


@pytest.mark.parametrize(("strength", "always"), [(0.2, 2), (1.0, 0), (0.5, 1)])
def test_mocce_is_the_formula(strength, always):
    for seed in range(6):
        seen = context(seed)
        chosen = sets(load_strategy(f"mocce:strength={strength},always={always}").choose(seen))
        for row in range(3):
            z = seen.rank_TE[row]
            best = set(np.argsort(-z)[:always].tolist())
            changed = [
                z[e] + strength * seen.spread * (seen.resident_E[e] or e in best) for e in range(EXPERTS)
            ]
            assert chosen[row] == set(np.argsort(-np.array(changed))[:TOP_K].tolist())


@pytest.mark.parametrize(("always", "within"), [(0, 6), (1, 8), (2, 12)])
def test_max_rank_is_the_rule(always, within):
    for seed in range(6):
        seen = context(seed)
        chosen = sets(load_strategy(f"max_rank:always={always},within={within}").choose(seen))
        for row in range(3):
            ranked = np.argsort(-seen.rank_TE[row]).tolist()
            kept = ranked[:always]
            kept += [e for e in ranked[always:within] if seen.resident_E[e]]
            kept += [e for e in ranked if e not in kept]
            assert chosen[row] == set(kept[:TOP_K])


@pytest.mark.parametrize("loss", [0.0, 0.1, 0.4])
def test_margin_swaps_the_lightest_for_the_best_resident(loss):
    for seed in range(6):
        seen = context(seed, resident=6)
        chosen = sets(load_strategy(f"margin:loss={loss}").choose(seen))
        for row in range(3):
            share = seen.score_TE[row] / seen.score_TE[row][seen.own_TK[row]].sum()
            claim = share + loss * seen.resident_E  # for softmax the rule is a bonus on the shares
            assert chosen[row] == set(np.argsort(-claim)[:TOP_K].tolist())


def slow_own_weight(seen, row, below):
    """A missing expert of small weight, the lightest first, is replaced by the best resident that is left."""
    weight, rank = seen.score_TE[row].tolist(), seen.rank_TE[row].tolist()
    chosen = seen.own_TK[row].tolist()
    spares = [e for e in range(EXPERTS) if seen.resident_E[e] and e not in chosen]
    spares.sort(key=lambda e: rank[e])
    for missing in sorted((e for e in chosen if not seen.resident_E[e]), key=lambda e: weight[e]):
        if weight[missing] < below and spares:
            chosen[chosen.index(missing)] = spares.pop()
    return set(chosen)


@pytest.mark.parametrize("resident", [2, 5, 8])
@pytest.mark.parametrize("below", [0.0, 0.04, 0.15, 2.0])
def test_own_weight_swaps_light_missing_experts_for_the_best_residents(below, resident):
    for seed in range(8):
        seen = context(seed, resident=resident)
        chosen = sets(load_strategy(f"own_weight:below={below}").choose(seen))
        assert chosen == [slow_own_weight(seen, row, below) for row in range(3)]


def slow_regret(seen, row, budget, swaps, within):
    """Of all sets of swaps within the budget the largest, and of these the one that loses least."""
    score = seen.score_TE[row].tolist()
    own = seen.own_TK[row].tolist()
    near = np.argsort(-seen.rank_TE[row])[: within or 4 * TOP_K].tolist()
    missing = [e for e in own if not seen.resident_E[e]]
    spares = [e for e in near if seen.resident_E[e] and e not in own]
    total = sum(score[e] for e in own)
    for count in range(min(swaps, len(missing), len(spares)), 0, -1):
        tried = [
            ((sum(score[e] for e in out) - sum(score[e] for e in into)) / total, set(own) - {*out} | {*into})
            for out in combinations(missing, count)
            for into in combinations(spares, count)
        ]
        lost, best = min(tried, key=lambda each: each[0])
        if lost <= budget:
            return best
    return set(own)


@settings(max_examples=150, deadline=None)
@given(
    seed=draw.integers(0, 10_000),
    resident=draw.integers(0, EXPERTS),
    budget=draw.sampled_from([0.0, 0.02, 0.1, 0.4, 9.0]),
    swaps=draw.integers(0, TOP_K + 1),
    within=draw.sampled_from([0, 4, 6, 9, 40]),
    biased=draw.booleans(),
)
def test_regret_is_the_best_of_all_sets_of_swaps(seed, resident, budget, swaps, within, biased):
    seen = context(seed, resident=resident)
    if biased:  # the router ranks by score + bias, so that a better rank may have the smaller score
        rank_TE = seen.score_TE + np.random.default_rng(seed).normal(size=EXPERTS) * 0.05
        seen = seen._replace(rank_TE=rank_TE, own_TK=np.argsort(-rank_TE, axis=1)[:, :TOP_K])
    chosen = sets(load_strategy(f"regret:budget={budget},swaps={swaps},within={within}").choose(seen))
    assert chosen == [slow_regret(seen, row, budget, swaps, within) for row in range(3)]


def slow_des(weights, thresholds):
    """Top-6: keep 4 if w4/w5 > mu45, else 5 if w5/w6 > mu56, else 6."""
    weights = sorted(weights, reverse=True)
    if weights[3] / weights[4] > thresholds[0]:
        return 4
    return 5 if weights[4] / weights[5] > thresholds[1] else 6


def test_des_keeps_as_many_as_the_rule_of_six():
    weights = np.random.default_rng(0).random((200, 6))
    sorted_TK = -np.sort(-weights, axis=1)
    expected = [slow_des(row, (1.4, 1.6)) for row in weights.tolist()]
    assert kept_counts(sorted_TK, (1.4, 1.6)).tolist() == expected and len(set(expected)) == 3


def test_des_keeps_the_largest_weights(tmp_path):
    seen = context(0)
    fewer = sets(load_strategy(specs(tmp_path, FLAT)["des"]).choose(seen))
    assert fewer == [set(row[:3]) for row in seen.own_TK.tolist()]


def test_odp_spares_the_most_important_prompt_tokens(tmp_path):
    spec = specs(tmp_path, FLAT)["odp"] + ",protect=0.3"
    seen = context(rows=5)
    plain, spared = (
        [len(kept) for kept in sets(load_strategy(spec).choose(seen._replace(importance_T=known)))]
        for known in (None, np.array([0.1, 3.0, 0.2, 2.0, 0.0]))
    )
    assert plain == [3] * 5 and spared == [3, 4, 3, 4, 3]


def test_thresholds_are_medians_of_a_trace_and_read_back(tmp_path):
    weights = np.random.default_rng(1).random((60, 3, 5)).astype(np.float16) + np.float16(0.01)
    trace = random_trace(3, steps=60, top_k=5, weights=weights)
    found = thresholds_of(trace)
    top_k = trace.top_k
    for layer in range(trace.layers):
        ordered = [sorted(map(float, row), reverse=True) for row in weights[:, layer]]
        expected = [np.median([row[j - 1] / row[j] for row in ordered]) for j in range(top_k // 2 + 1, top_k)]
        assert found.median_LN[layer] == pytest.approx(expected)
    found.save(tmp_path / "t.json")
    assert Thresholds.load(tmp_path / "t.json") == found
    for content in (b"[" * 100_000, b'"\xff"', b"{}"):
        (tmp_path / "t.json").write_bytes(content)
        with pytest.raises(UserError, match="not a file of thresholds"):
            Thresholds.load(tmp_path / "t.json")
    with pytest.raises(UserError, match="holds no routing weights"):
        thresholds_of(random_trace(3, steps=5))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nearest", "unknown routing strategy 'nearest': choose from cecar, constant, des"),
        ("cecar:fil=drop", "routing strategy 'cecar:fil=drop': unknown option 'fil': choose from fill, tau"),
        ("cecar:fill=all", "fill must be one of resident, drop, none, got 'all'"),
        ("cecar:tau=many", "option 'tau' must be of type int"),
        ("mocce:strength=-1", "strength must be at least 0"),
        ("own_weight:below=-1", "'own_weight': below must be at least 0, got -1"),
        ("own_weight:below=nan", "option 'below' must be finite and less, got 'nan'"),
        ("regret:budget=-0.1", "'regret': budget must be at least 0, got -0.1"),
        ("regret:swaps=-1", "'regret': swaps must be at least 0, got -1"),
        ("regret:swaps=1.5", "option 'swaps' must be of type int"),
        ("regret:limit=1", "unknown option 'limit': choose from budget, swaps, within"),
        ("des", "needs des:thresholds=FILE"),
        ("des:thresholds=none.json", "thresholds 'none.json': No such file"),
    ],
)
def test_mistakes_are_reported(spec, message):
    with pytest.raises(UserError, match=message):
        load_strategy(spec)


def test_thresholds_of_another_model_are_refused(tmp_path):
    file = thresholds_file(tmp_path, 1.0, top_k=6)
    with pytest.raises(UserError, match=r"^thresholds .*: layer 1 of this model"):
        load_strategy(f"des:thresholds={file}").choose(context())
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(UserError, match="not a file of thresholds"):
        load_strategy(f"des:thresholds={tmp_path / 'bad.json'}")


def test_an_expert_never_used_gets_no_lru_bonus():
    seen = context(0, resident=6, lag_E=np.where(np.arange(EXPERTS) % 2, NEVER, 3))
    alpha_E = load_strategy("lru").alpha(seen)  # type: ignore[attr-defined]
    assert set(alpha_E[(seen.lag_E == NEVER) | ~seen.resident_E]) == {0.0}
