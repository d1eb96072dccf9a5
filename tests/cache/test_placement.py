"""Watermark placement keeps its limits and stands still, whatever the probabilities, sizes and tiers."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dwellmoe.cache.policies.base import policy_names
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM, Tier, nothing_placed, place
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

EXPERTS = 10
chances = st.sampled_from([0.0, 0.1, 0.1, 0.3, 0.5, 0.51, 0.9, 1.0])
shares = st.lists(chances, min_size=EXPERTS, max_size=EXPERTS)
sizes = st.lists(st.integers(1, 9), min_size=EXPERTS, max_size=EXPERTS)
limits = st.tuples(st.integers(1, 60), st.integers(1, 60))


@st.composite
def contexts(draw):
    """(placement before, probabilities, sizes, tiers, running): any, also with more device than RAM."""
    size, (device, ram) = np.array(draw(sizes)), draw(limits)
    tiers = Tier(device, 2e-3), Tier(ram, 3e-2)
    running = draw(st.lists(st.integers(0, EXPERTS - 1), max_size=3, unique=True))
    assume(size[running].sum() <= device)
    before = nothing_placed(EXPERTS)
    for _ in range(draw(st.integers(0, 2))):
        before = place(before, np.array(draw(shares)), size, tiers)
    return before, np.array(draw(shares)), size, tiers, running


@settings(max_examples=100, deadline=None)
@given(contexts())
def test_limits_hold_and_the_running_layer_is_on_the_device(context):
    before, likely, size, tiers, running = context
    after = place(before, likely, size, tiers, running)
    for tier, number in zip(tiers, (DEVICE, RAM), strict=True):
        assert size[after.tier == number].sum() <= tier.limit_bytes
    assert (after.tier[running] == DEVICE).all() and set(after.tier.tolist()) <= {DEVICE, RAM, DISK}


@settings(max_examples=100, deadline=None)
@given(contexts())
def test_nothing_moves_while_probabilities_stand_still(context):
    before, likely, size, tiers, running = context
    once = place(before, likely, size, tiers, running)
    again = place(once, likely, size, tiers, running)
    assert np.array_equal(once.tier, again.tier) and once.prices == again.prices


@settings(max_examples=100, deadline=None)
@given(contexts(), st.integers(0, EXPERTS - 1), st.floats(0, 1))
def test_a_likelier_expert_is_never_lower(context, expert, more):
    before, likely, size, tiers, running = context
    raised = likely.copy()
    raised[expert] += more
    low, high = (place(before, p, size, tiers, running).tier[expert] for p in (likely, raised))
    assert high <= low


@settings(max_examples=100, deadline=None)
@given(contexts())
def test_hysteresis_keeps_who_is_nearly_as_good(context):
    """An expert leaves the device for another only where their densities differ by more than 2 h."""
    before, likely, size, tiers, _ = context
    after = place(before, likely, size, tiers, hysteresis=0.2)
    density = likely / size
    came = density[(after.tier == DEVICE) & (before.tier != DEVICE)]
    went = density[(after.tier != DEVICE) & (before.tier == DEVICE)]
    assert not len(went) or (len(came) and went.max() < came.min())


def test_equals_stay_single_and_the_latest_used_come_first():
    size, tiers = np.full(6, 10), (Tier(20, 1.0), Tier(20, 1.0))
    last_use = np.array([5, 9, 1, 9, 7, 0])
    after = place(nothing_placed(6), np.full(6, 0.5), size, tiers, last_use=last_use, hysteresis=0.0)
    assert after.tier.tolist() == [RAM, DEVICE, DISK, DEVICE, RAM, DISK]


def test_price_is_that_of_the_first_who_stays_out():
    size, likely = np.full(4, 10), np.array([0.9, 0.5, 0.4, 0.1])
    after = place(nothing_placed(4), likely, size, (Tier(20, 2.0), Tier(10, 5.0)), hysteresis=0.1)
    assert after.tier.tolist() == [DEVICE, DEVICE, RAM, DISK]
    assert after.prices == pytest.approx((0.4 * 2 / 10, 0.1 * 5 / 10))


def test_a_running_layer_too_large_is_refused():
    with pytest.raises(UserError, match="needs 30 bytes on a device of 20"):
        place(nothing_placed(4), np.ones(4), np.full(4, 15), (Tier(20, 1.0), Tier(9, 1.0)), running=[0, 1])


def test_the_policy_of_that_name_is_a_fading_share_of_uses():
    """A cache a layer: p with alpha 0.5 orders experts as counters that halve at each token step."""
    assert "watermark" in policy_names()
    for seed in range(3):
        trace = random_trace(seed, steps=200)
        for capacity in (3, 6, 9):
            rows = [replay(trace, spec, capacity) for spec in ("watermark", "lrfu:decay=0.5")]
            assert rows[0].hits == rows[1].hits
