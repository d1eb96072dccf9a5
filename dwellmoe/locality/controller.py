"""LocalityController: adapts the weight of the locality term until a target is met.

The target is a constraint and the weight its multiplier, which rises or falls with the error. The controller
acts on the weight's logarithm, so that the same gains serve objectives whose useful weights lie orders of
magnitude apart, and keeps each change within a trust region.
"""

from dataclasses import asdict, dataclass, field
from math import exp, log

RAMP = 0.5
"""Share of the training over which the set point rises from the start to the target."""
MEMORY = 0.02
"""Share of the training over which a step's measurement is averaged with those before (3 steps at least)."""
INTEGRAL, PROPORTIONAL = 60.0, 6.0
"""Change of log weight for an error of 1 (the whole distance from the start to the target) that lasts all
training, and for a rise of the error by 1."""
SHORTEST_DISTANCE = 0.1
"""Least distance that errors are measured in: a shorter one would drown in the noise of a batch."""
TRUST_REGION = 46.0
"""Largest change of log weight over the whole training: a factor of 10 in a twentieth of it."""
TAPER = 0.2
"""Share of the training, the last, over which changes fade out: the learning rate has little left to give."""
RANGE = log(1e4)
"""How far log weight may leave its start."""
BUDGET_GAIN, BUDGET_STEP = 12.0, log(4)
"""For a budget of loss: change of log weight over all validations at full error, and the most at one."""


@dataclass
class LocalityController:
    """The weight and the controller's state: plain numbers, which a checkpoint can hold.

    `target`: the rate that is wanted (ECR or hit rate, in (0, 1)), or the largest rise of the validation loss
    in nats. `start_weight` is the weight of the first step.
    """

    target: float
    start_weight: float
    log_weight: float = field(init=False)
    smoothed: float | None = None
    offset: float = 0.0
    """Held-out value minus that of the training steps."""
    start: float | None = None
    error: float | None = None
    reference_loss: float | None = None
    validated: dict[str, float] = field(default_factory=dict)
    """Step -> what was controlled, on held-out text."""

    def __post_init__(self):
        self.log_weight = log(self.start_weight)

    @property
    def weight(self) -> float:
        return exp(self.log_weight)

    @property
    def at_limit(self) -> bool:
        """Whether the weight has gone as far as it may."""
        return abs(self.log_weight - log(self.start_weight)) >= RANGE - 1e-9

    def after_step(self, step: int, steps: int, rate: float) -> None:
        """Takes the rate measured on training step `step` of `steps` (1, 2, ...); for a target rate."""
        before = self.smoothed
        self.smoothed = rate if before is None else before + (rate - before) / max(3.0, MEMORY * steps)
        estimate = min(self.smoothed + self.offset, 0.999)
        if self.start is None:
            self.start = estimate
        set_point = self.start + (self.target - self.start) * min(1.0, step / (RAMP * steps))
        distance = max(SHORTEST_DISTANCE, abs(log((1 - self.start) / (1 - self.target))))
        error = log((1 - estimate) / (1 - set_point)) / distance
        rise = 0.0 if self.error is None else error - self.error
        self.error = error
        left = min(1.0, (1 - step / steps) / TAPER)
        self._change(left * (INTEGRAL / steps * error + PROPORTIONAL * rise), left * TRUST_REGION / steps)

    def after_validation(self, step: int, value: float) -> None:
        """Takes the held-out rate after training step `step`; for a target rate."""
        self.validated[str(step)] = value
        if self.smoothed is not None:
            self.offset = value - self.smoothed

    def after_budget_validation(self, step: int, validations: float, rise: float) -> None:
        """Takes the rise of the held-out loss after step `step`; `validations` is how many there are in all.
        The weight falls twice as fast as it rises: a loss that has risen needs time to recover.
        """
        self.validated[str(step)] = rise
        error = max(-2.0, min(1.0, (self.target - rise) / self.target))
        self._change(BUDGET_GAIN / validations * error, BUDGET_STEP)

    def _change(self, change: float, most: float) -> None:
        middle = log(self.start_weight)
        moved = self.log_weight + max(-most, min(most, change))
        self.log_weight = max(middle - RANGE, min(middle + RANGE, moved))

    def state(self) -> dict:
        return asdict(self)

    def restore(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)
