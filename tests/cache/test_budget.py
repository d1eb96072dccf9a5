"""How slots, percent and bytes convert."""

import pytest

from dwellmoe.cache.budget import layer_slots
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace


@pytest.mark.parametrize(
    ("experts", "top_k", "capacity", "slots"),
    [
        (12, 3, "25%", 3),
        (12, 3, "50%", 6),
        (12, 3, 8, 8),
        (12, 3, "2", 3),
        (3, 1, "25%", 1),
        (2, 1, "25%", 1),
    ],
)
def test_a_layer_has_slots_for_one_token_at_least(experts, top_k, capacity, slots):
    assert layer_slots(random_trace(experts=experts, top_k=top_k), capacity) == slots


@pytest.mark.parametrize("capacity", ["25 %%", "-1%", "101%", "many"])
def test_what_is_no_capacity_is_refused(capacity):
    with pytest.raises(UserError, match="capacity"):
        layer_slots(random_trace(), capacity)
