"""The objective `pool`, against a slow version written an expert at a time, and what it does to a gate."""

import math
from statistics import mean

import pytest
import torch

from dwellmoe.data.collate import PackingCollator, PaddingCollator
from dwellmoe.errors import UserError
from dwellmoe.locality.objectives import load_objective
from dwellmoe.locality.pairs import pair_mask
from tests.locality.test_objectives import B, E, K, L, all_pairs, gates

WIDTH, SLOTS, BALANCE = 0.25, 4, 0.3
SPEC = f"pool:budget={SLOTS},balance={BALANCE}"


def runs(mask):
    """[(row, its tokens)]: unbroken runs of valid pairs."""
    found = []
    for row, pairs in enumerate(mask.tolist()):
        for at, valid in enumerate(pairs):
            if valid and at and pairs[at - 1]:
                found[-1][1].append(at + 1)
            elif valid:
                found.append((row, [at, at + 1]))
    return found


def deviation(values):
    return math.sqrt(sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1))


def soft(values, count, tau, boundary=None):
    if boundary is None:
        ordered = sorted(values, reverse=True)
        boundary = (ordered[count - 1] + ordered[count]) / 2
    return [1 / (1 + math.exp(-(value - boundary) / tau)) for value in values], boundary


def mean_of(rows):
    return [mean(column) for column in zip(*rows, strict=True)]


def shares(values):
    return [value / sum(values) for value in values]


def slow_layer(z, requests, slots, balance, held=None):
    """(the loss of one layer, what carries no gradient); `held`: that of another call, kept as it was."""
    tokens = [(row, at) for row, span in requests for at in span]
    tau = held["tau"] if held else WIDTH * mean(deviation(z[row][at]) for row, at in tokens)
    boundaries = held["boundaries"] if held else {}
    use = []
    for row, span in requests:
        of_tokens = []
        for at in span:
            member, boundaries[row, at] = soft(z[row][at], K, tau, boundaries.get((row, at)))
            of_tokens.append(shares(member))
        use.append(mean_of(of_tokens))
    pools = held["pools"] if held else [
        soft(one, slots, WIDTH * mean(map(deviation, use)))[0] for one in use
    ]  # fmt: skip
    within = [sum(u * w for u, w in zip(*each, strict=True)) for each in zip(use, pools, strict=True)]
    lengths = [len(span) for _, span in requests]
    outside = 1 - sum(length * one for length, one in zip(lengths, within, strict=True)) / len(tokens)
    shared = 0.0
    for number, one in enumerate(use):
        others = [pool for other, pool in enumerate(pools) if other != number]
        if others:
            shared += sum(u * v for u, v in zip(one, mean_of(others), strict=True))
    total = outside + balance * shared / len(requests)
    return total, {"tau": tau, "boundaries": boundaries, "pools": pools}


def slow_pool(logits, mask, slots=SLOTS, balance=BALANCE):
    return mean(slow_layer(z, runs(mask), slots, balance)[0] for z in logits.double().tolist())


MASKS = {
    "whole rows": lambda mask: mask,
    "a cut row, a row without its first half": lambda mask: mask.index_put(
        (torch.tensor([0, 1, 1, 1]), torch.tensor([3, 0, 1, 2])), torch.tensor(False)
    ),
    "one request": lambda mask: mask & (torch.arange(B) == 1)[:, None],
}


@pytest.mark.parametrize("cut", MASKS)
def test_against_a_slow_one(cut):
    logits, chosen = gates()
    mask = MASKS[cut](all_pairs())
    found = load_objective(SPEC)(logits, chosen, mask).item()
    assert found == pytest.approx(slow_pool(logits, mask), rel=1e-5)


def test_the_gradient_is_that_of_small_steps():
    """Pools, boundaries and temperatures stay as they are: they carry no gradient."""
    logits, chosen = gates(seed=3)
    mask = MASKS["a cut row, a row without its first half"](all_pairs())
    logits.requires_grad_()
    load_objective(SPEC)(logits, chosen, mask).backward()
    z = logits.detach().double()
    for layer, row, at, expert in ((0, 0, 0, 1), (0, 2, 6, 7), (1, 1, 5, 0), (1, 0, 2, 3), (0, 1, 1, 2)):
        requests = runs(mask)
        _, held = slow_layer(z[layer].tolist(), requests, SLOTS, BALANCE)
        ends = []
        for step in (1e-4, -1e-4):
            moved = z[layer].clone()
            moved[row, at, expert] += step
            ends.append(slow_layer(moved.tolist(), requests, SLOTS, BALANCE, held)[0])
        slope = (ends[0] - ends[1]) / 2e-4 / L
        assert logits.grad[layer, row, at, expert].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_with_narrow_memberships_it_is_the_share_of_choices_outside_the_pool():
    logits, chosen = gates(seed=5, tokens=40)
    outside = []
    for layer in range(L):
        for row in range(B):
            uses = torch.bincount(chosen[layer, row].flatten(), minlength=E)
            outside.append(1 - uses.sort(descending=True).values[:3].sum().item() / (40 * K))
    found = load_objective("pool:budget=3,width=0.0001,balance=0")(logits, chosen, all_pairs(40))
    assert found.item() == pytest.approx(mean(outside), abs=5e-3)


def test_requests_packed_into_a_row_or_padded_count_alike():
    rows = [{"input_ids": [1] * size, "labels": [-100, -100, *[1] * (size - 2)]} for size in (6, 9, 5)]
    drawn = [torch.randn(2, len(row["input_ids"]), E) for row in rows]
    for on_prompt in (True, False):
        found = []
        for collate in (PaddingCollator(0), PackingCollator(0, 20), PackingCollator(0, 11)):
            batch = collate(rows)
            segments = batch["segment_ids"]
            logits = torch.full((2, *segments.shape, E), 7.0) * torch.randn(E)  # of padding: must not count
            for each in drawn:
                place_of = {length(segments, *place): place for place in begins(segments)}
                row, first = place_of[each.shape[1]]
                logits[:, row, first : first + each.shape[1]] = each
            mask = pair_mask(segments, batch["labels"], on_prompt)
            found.append(load_objective("pool:budget=3")(logits, logits.topk(K).indices, mask).item())
        assert found == pytest.approx([found[0]] * 3, rel=1e-5)


def begins(segments):
    """(row, first token) of each request."""
    for row, ids in enumerate(segments.tolist()):
        yield from ((row, ids.index(each)) for each in sorted({*ids} - {0}))


def length(segments, row, first):
    return int((segments[row] == segments[row, first]).sum())


@pytest.mark.parametrize("budget", [E, "100%"])
def test_a_pool_of_all_experts_asks_for_nothing(budget):
    logits, chosen = gates()
    logits.requires_grad_()
    value = load_objective(f"pool:budget={budget},balance=0")(logits, chosen, all_pairs())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6) and logits.grad.abs().max() < 1e-6


def test_only_the_balance_tells_one_pool_for_all_from_one_for_each():
    own = torch.full((1, B, 6, E), -4.0)
    for row in range(B):
        own[0, row, :, 2 * row : 2 * row + 2] = 4.0
    found = {}
    for balance in (0, 1):
        loss = load_objective(f"pool:budget=2,balance={balance}")
        found[balance] = [
            loss(logits, logits.topk(K).indices, all_pairs(6)).item()
            for logits in (own, own[:, :1].expand_as(own))
        ]
    assert found[0][0] == pytest.approx(found[0][1], abs=1e-6)
    assert found[1][0] < 0.1 and found[1][1] > 0.9


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pool:budget=6GiB", "budget 6GiB"),
        ("pool:budget=0", "above 0"),
        ("pool:width=0", "width"),
        ("pool:balance=-1", "balance -1"),
        ("cache_miss:budget=6GiB", "budget 6GiB"),
    ],
)
def test_a_wrong_option_is_a_users_mistake(spec, message):
    with pytest.raises(UserError, match=message):
        load_objective(spec)


def test_it_is_finite_where_a_router_may_not_choose_some_experts():
    masked = gates()[0]
    masked[..., -2:] = -math.inf
    masked.requires_grad_()
    value = load_objective("pool:budget=3")(masked, masked.topk(K).indices, all_pairs())
    value.backward()
    assert torch.isfinite(value) and masked.grad is not None and torch.isfinite(masked.grad).all()
