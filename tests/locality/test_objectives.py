"""Contract of every locality objective, and each formula against an obvious version of its own."""

import math

import pytest
import torch

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.errors import UserError
from dwellmoe.locality.objectives import load_objective, objective_names
from dwellmoe.locality.pairs import pair_mask

L, B, T, E, K = 2, 3, 7, 8, 2
ALONE = {"pool": "pool:balance=0"}
"""Without what compares a request with the others of the batch, among which a copy of it counts."""


def gates(seed=0, spread=1.0, layers=L, tokens=T):
    logits = torch.randn(layers, B, tokens, E, generator=torch.Generator().manual_seed(seed)) * spread
    return logits, logits.topk(K).indices


def all_pairs(tokens=T):
    return torch.ones(B, tokens - 1, dtype=torch.bool)


def slow_js(p, q):
    mixture = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (slow_divergence(p, mixture) + slow_divergence(q, mixture)) / 2


def slow_divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_kl(p, q):
    return (slow_divergence(p, q) + slow_divergence(q, p)) / 2


def slow_l2(p, q):
    return sum((a - b) ** 2 for a, b in zip(p, q, strict=True)) / len(p)


@pytest.mark.parametrize(("name", "slow"), [("js", slow_js), ("kl", slow_kl), ("l2", slow_l2)])
def test_formula_against_a_slow_one(name, slow):
    logits, chosen = gates()
    mask = all_pairs()
    mask[0, 3] = mask[2, 0] = False
    p = logits.double().softmax(-1).tolist()
    terms = [
        slow(p[layer][row][at], p[layer][row][at + 1])
        for layer in range(L)
        for row in range(B)
        for at in range(T - 1)
        if mask[row, at]
    ]
    found = load_objective(name)(logits, chosen, mask).item()
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize("name", objective_names())
class TestEveryObjective:
    def test_identical_tokens_cost_least(self, name):
        logits, chosen = gates()
        same = logits[:, :, :1].expand_as(logits)
        loss = load_objective(name)
        low = loss(same, same.topk(K).indices, all_pairs())
        assert torch.isfinite(low)
        assert low < loss(logits, chosen, all_pairs())

    def test_no_valid_pair_is_zero_with_a_gradient(self, name):
        logits, chosen = gates()
        logits.requires_grad_()
        value = load_objective(name)(logits, chosen, all_pairs() & False)
        value.backward()
        assert value == 0
        assert logits.grad is not None and (logits.grad == 0).all()

    def test_masked_tokens_get_no_gradient(self, name):
        logits, chosen = gates()
        logits.requires_grad_()
        mask = all_pairs()
        mask[1] = False
        load_objective(name)(logits, chosen, mask).backward()
        assert (logits.grad[:, 1] == 0).all()
        assert (logits.grad[:, 0] != 0).any()

    def test_comparable_across_lengths_and_depths(self, name):
        """The seed's loss grew with both, so that no two weights could be compared."""
        loss = load_objective(ALONE.get(name) or name)
        short, chosen = gates()
        twice = torch.cat([short, short])
        assert loss(twice, twice.topk(K).indices, all_pairs()) == pytest.approx(
            loss(short, chosen, all_pairs()).item(), rel=1e-5
        )
        doubled = torch.cat([short, short], dim=2)
        mask = torch.cat([all_pairs(), torch.zeros(B, 1, dtype=torch.bool), all_pairs()], dim=1)
        assert loss(doubled, doubled.topk(K).indices, mask) == pytest.approx(
            loss(short, chosen, all_pairs()).item(), rel=1e-5
        )

    @pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0, 1e4])
    def test_finite_in_bfloat16(self, name, spread):
        logits = gates(spread=spread)[0].bfloat16().requires_grad_()
        value = load_objective(name)(logits, logits.topk(K).indices, all_pairs())
        value.backward()
        assert torch.isfinite(value)
        assert logits.grad is not None and torch.isfinite(logits.grad).all()

    def test_a_free_gate_becomes_local(self, name):
        """A free gate trained with the seed's loss stayed at chance; ours must bring every token together."""
        logits = gates(seed=1, layers=1, tokens=12)[0].requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=0.1)
        before = consistency(logits)
        for _ in range(300):
            optimizer.zero_grad()
            load_objective(name)(logits, logits.topk(K).indices, all_pairs(12)).backward()
            optimizer.step()
        assert consistency(logits) > max(0.65, 1.8 * before)


def slow_reuse(p, chosen, window, decay):
    """Terms of one row, an expert at a time."""
    terms = []
    for at in range(len(p) - 1):
        weight = {}
        for age in range(min(window, at + 1)):
            for expert in chosen[at - age]:
                weight[expert] = max(weight.get(expert, 0), decay**age)
        terms.append(-math.log(sum(p[at + 1][expert] * share for expert, share in weight.items())))
    return terms


@pytest.mark.parametrize(("window", "decay"), [(1, 0.5), (3, 0.5), (20, 1.0)])
def test_reuse_against_a_slow_one(window, decay):
    logits, chosen = gates()
    mask = all_pairs()
    mask[1, 3] = False
    p, picks = logits.double().softmax(-1).tolist(), chosen.tolist()
    terms = []
    for layer in range(L):
        for row, cut in ((0, T), (1, 4), (2, T)):
            terms += slow_reuse(p[layer][row][:cut], picks[layer][row][:cut], window, decay)
        terms += slow_reuse(p[layer][1][4:], picks[layer][1][4:], window, decay)
    found = load_objective(f"reuse:window={window},decay={decay}")(logits, chosen, mask).item()
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "heeds_the_chosen"),
    [("js", False), ("overlap", False), ("reuse", True), ("cache_miss:budget=100%", True)],
)
def test_an_empty_slot_is_no_use(spec, heeds_the_chosen):
    """An expert that did not run counts as not used; objectives of logits alone see no difference."""
    logits, chosen = gates()
    emptied = chosen.clone()
    emptied[..., 1] = -1
    loss = load_objective(spec)
    found, full = loss(logits, emptied, all_pairs()).item(), loss(logits, chosen, all_pairs()).item()
    assert found > full + 1e-3 if heeds_the_chosen else found == full
    if spec == "reuse":
        assert found == loss(logits, chosen[..., :1], all_pairs()).item()


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["lru", "lfu", "lrfu:decay=0.9"])
def test_cache_miss_counts_the_misses_of_the_live_cache(policy):
    """With a narrow membership the loss is the miss rate itself, of a cache that is cold in each request."""
    logits, chosen = gates(spread=3.0, tokens=20)
    mask = all_pairs(20)
    mask[1, 8] = False
    missed = requested = 0
    for row, span in ((0, range(20)), (1, range(9)), (1, range(9, 20)), (2, range(20))):
        cache = ExpertCache(policy, layers=L, experts=E, capacity=4)
        for layer in range(L):
            for place, at in enumerate(span):
                step = cache.request(layer, chosen[layer, row, at].numpy(), counted=place > 0)
                missed += len(step.load) if place else 0
                requested += K if place else 0
    loss = load_objective(f"cache_miss:policy={policy},budget=50%,width=0.0001")
    assert loss(logits, chosen, mask).item() == pytest.approx(missed / requested, abs=2e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("js:window=2", "unknown option 'window': choose from none"),
        ("reuse:window=0", "window must be at least 1"),
        ("reuse:decay=x", "option 'decay' must be of type float, got 'x'"),
        ("overlap:width=0", "must be above 0"),
        ("cache_miss:policy=lrux", "unknown policy 'lrux'"),
        ("cache_miss:budget=25q", "capacity '25q'"),
        ("js+reuze", "unknown locality objective 'reuze'"),
        ("js+0*kl", "the factor '0' must be a number above 0"),
        ("two*js", "the factor 'two' must be a number above 0"),
        ("js+0.5*overlap:width=0", "must be above 0"),
    ],
)
def test_a_wrong_option_is_a_users_mistake(spec, message):
    with pytest.raises(UserError, match=message):
        load_objective(spec)


def test_a_sum_weighs_each_objective_by_its_factor():
    logits, chosen = gates()
    alone = {name: load_objective(name)(logits, chosen, all_pairs()).item() for name in ("js", "overlap")}
    wide = load_objective("overlap:width=25")(logits, chosen, all_pairs()).item() / alone["overlap"]
    for spec, factors in {
        "js+overlap": (1, 1),
        "2*js+0.5*overlap:width=0.25": (2, 0.5),
        "overlap:width=25e+0+js": (1, wide),
    }.items():
        expected = factors[0] * alone["js"] + factors[1] * alone["overlap"]
        assert load_objective(spec)(logits, chosen, all_pairs()).item() == pytest.approx(expected, rel=1e-6)


def consistency(logits):
    chosen = logits.topk(K).indices
    shared = (chosen[..., :-1, :, None] == chosen[..., 1:, None, :]).any(-1)
    return shared.float().mean().item()


def test_js_stays_within_its_bounds():
    logits, chosen = gates(spread=100.0)
    assert 0 <= load_objective("js")(logits, chosen, all_pairs()).item() <= math.log(2)


def test_unknown_objective_lists_the_choices():
    with pytest.raises(
        UserError, match=r"unknown locality objective 'jss': .*choose from cache_miss, js, kl"
    ):
        load_objective("jss")


class TestPairMask:
    segments = torch.tensor([[1, 1, 1, 2, 2, 0, 0]])
    labels = torch.tensor([[-100, 5, 6, -100, 7, -100, -100]])

    def test_neither_padding_nor_a_request_boundary(self):
        expected = [[True, True, False, True, False, False]]
        assert pair_mask(self.segments, self.labels, True).tolist() == expected

    def test_without_the_prompt(self):
        assert pair_mask(self.segments, self.labels, False).tolist() == [
            [False, True, False, False, False, False]
        ]
