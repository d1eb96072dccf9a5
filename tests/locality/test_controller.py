"""The controller against a stand-in for training: its rate lags the weight, saturates, and is noisy."""

import json
import random
from math import cos, log, pi

import pytest

from dwellmoe.locality.controller import LocalityController


class StandIn:
    """Routing under training: the rate creeps to what the weight asks for, as fast as the learning rate."""

    def __init__(self, steps, half_way_weight, top=0.9, lag=20.0):
        self.steps, self.half_way_weight, self.top, self.lag = steps, half_way_weight, top, lag
        self.rate, self.draw = 0.26, random.Random(0)

    def step(self, step, weight):
        settled = 0.26 + (self.top - 0.26) * weight / (weight + self.half_way_weight)
        learning_rate = min(1.0, step / (0.05 * self.steps)) * cos(pi * step / self.steps / 2) ** 2
        self.rate += (settled - self.rate) * min(1.0, learning_rate / self.lag)
        return self.rate + self.draw.gauss(0, 0.01)

    def held_out(self):
        return self.rate - 0.01


def train(controller, plant, begin=1):
    for step in range(begin, plant.steps + 1):
        controller.after_step(step, plant.steps, plant.step(step, controller.weight))
        if step % (plant.steps // 4) == 0:
            controller.after_validation(step, plant.held_out())
    return plant.held_out()


@pytest.mark.parametrize("steps", [160, 2000])
@pytest.mark.parametrize("half_way_weight", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("target", [0.4, 0.6])
def test_lands_within_three_percent_whatever_the_scale_of_the_objective(steps, half_way_weight, target):
    plant = StandIn(steps, half_way_weight)
    assert train(LocalityController(target, 1.0), plant) == pytest.approx(target, rel=0.03)


def test_a_target_out_of_reach_ends_far_up_and_is_not_met():
    controller, plant = LocalityController(0.8, 1.0), StandIn(400, 1.0, top=0.5)
    assert train(controller, plant) < 0.55
    assert controller.weight > 1e3


def test_a_target_below_the_start_needs_no_weight():
    controller = LocalityController(0.2, 1.0)
    assert train(controller, StandIn(400, 1.0)) < 0.3
    assert controller.weight < 0.2


def test_each_change_stays_in_the_trust_region():
    controller = LocalityController(0.9, 1.0)
    for step in range(1, 101):
        before = controller.log_weight
        controller.after_step(step, 100, 0.1 if step % 2 else 0.8)
        assert abs(controller.log_weight - before) <= 0.46 + 1e-9


def test_a_restored_controller_goes_on_exactly():
    whole, plant = LocalityController(0.5, 2.0), StandIn(200, 1.0)
    train(whole, plant)
    first, again = LocalityController(0.5, 2.0), StandIn(200, 1.0)
    for step in range(1, 91):
        first.after_step(step, 200, again.step(step, first.weight))
        if step % 50 == 0:
            first.after_validation(step, again.held_out())
    second = LocalityController(0.5, 2.0)
    second.restore(json.loads(json.dumps(first.state())))
    train(second, again, begin=91)
    assert second.state() == whole.state()


def test_a_budget_of_loss_is_used_and_kept():
    """The loss rises with the logarithm of the weight; 0.01 is reached at weight 10."""
    controller = LocalityController(0.01, 0.1)
    for step in range(1, 21):
        controller.after_budget_validation(
            step, 20, max(0.0, 0.005 + 0.005 * log(controller.weight) / log(10))
        )
    assert 0.007 < controller.validated["20"] <= 0.0105
