"""Callback that adapts the locality weight to a target, and tells how close the kept checkpoint came."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState

from dwellmoe.families import MoeLayer
from dwellmoe.locality.controller import LocalityController
from dwellmoe.locality.monitor import RoutingMonitor, RunningMeans
from dwellmoe.locality.targets import Target


class EvaluateAtEnd(TrainerCallback):
    """Validates after the last step too, so that the last checkpoint can be the best one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


class TargetResult(NamedTuple):
    """What was requested, and what the kept checkpoint reached on the validation text."""

    target: str
    requested: float
    reached: float | None
    deviation: float | None
    """Relative to the request; None for a budget of loss."""
    met: bool
    step: int
    weight_at_the_end: float
    weight_at_limit: bool


class ClosestToTarget(TrainerCallback, ExportableState):
    """Adapts the locality weight to a target, keeps its state in the checkpoints, and reports how
    close to the target the kept checkpoint is.

    `monitor` has to observe the routers in every training step if the target is a rate (`observes_steps`).
    `control_losses`: (step, validation loss) of a run without locality, from which a rise of the loss is
    counted; without them it is counted from the first validation.
    """

    def __init__(
        self,
        target: Target,
        start_weight: float,
        moe_layers: Sequence[MoeLayer],
        control_losses: Sequence[tuple[int, float]] = (),
    ):
        self.target = target
        self.controller = LocalityController(target.value, start_weight)
        self.monitor = RoutingMonitor(moe_layers)
        self._control_losses = control_losses
        self._state: TrainerState | None = None

    @property
    def observes_steps(self) -> bool:
        return self.target.kind != "budget"

    def state(self) -> dict:
        return {"args": {}, "attributes": {"controller": self.controller.state()}}

    def on_train_begin(self, args, state, control, **kwargs):
        self._state = state
        states: Any = state.stateful_callbacks
        saved = states.setdefault(type(self).__name__, self.state())
        self.controller.restore(saved["attributes"]["controller"])

    def on_step_end(self, args, state, control, **kwargs):
        if not self.observes_steps:
            return
        rate = self._rate_of_step()
        if np.isfinite(rate):  # requests of one token have no pair
            self.controller.after_step(state.global_step, state.max_steps, rate)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if str(state.global_step) in self.controller.validated:
            return  # a resumed run that validates at its start
        value = self.controlled_value(metrics, state.global_step)
        if self.observes_steps:
            self.controller.after_validation(state.global_step, value)
        else:
            validations = max(1.0, state.max_steps / state.eval_steps)
            self.controller.after_budget_validation(state.global_step, validations, value)

    def controlled_value(self, metrics: dict[str, float], step: int) -> float:
        """What the target is about, out of the metrics of a validation: a rate, or the rise of the loss."""
        value = metrics[f"eval_{self.target.metric}"]
        return value if self.observes_steps else value - self._reference_loss(value, step)

    def error(self, metrics: dict[str, float], step: int) -> float:
        """By which checkpoints are compared, see `Target.score`."""
        return self.target.score(self.controlled_value(metrics, step), metrics)

    def _rate_of_step(self) -> float:
        """The target's rate in the training step that just ended, over all ranks. Every rank must call it."""
        trace = self.monitor.trace()
        assert trace is not None, "no batch of the step was observed"
        mean = RunningMeans()
        mean.add(trace.steps, rate=self.target.measure(trace))
        return mean.read()["rate"]

    def _reference_loss(self, loss: float, step: int) -> float:
        """What the validation loss is compared with at this step: the control run's at the same step, or that
        of the reference model, which is `loss` itself before the first step.
        """
        if self._control_losses:
            steps, losses = np.array(self._control_losses).T
            return float(np.interp(step, steps, losses))
        if self.controller.reference_loss is None:
            self.controller.reference_loss = loss
        return self.controller.reference_loss

    def result(self) -> "TargetResult":
        """What the kept checkpoint reached on the validation text."""
        assert self._state is not None, "no training has begun"
        step = self._state.best_global_step or self._state.global_step
        value = self.controller.validated.get(str(step))
        return TargetResult(
            target=self.target.text,
            requested=self.target.value,
            reached=value,
            deviation=None if value is None or not self.observes_steps else value / self.target.value - 1,
            met=value is not None and self.target.met_by(value),
            step=step,
            weight_at_the_end=self.controller.weight,
            weight_at_limit=self.controller.at_limit,
        )

    def verdict(self) -> str:
        """The result in a sentence."""
        found = self.result()
        reached = "nothing measured" if found.reached is None else f"{found.reached:.4f}"
        if found.deviation is not None:
            reached += f" ({found.deviation:+.1%})"
        advice = "; more steps, a wider --train_scope or a nearer target may help"
        return (
            f"target {found.target} {found.requested:g} {'met' if found.met else 'NOT MET'}: reached "
            f"{reached} on the validation text at step {found.step}, the locality weight ended at "
            f"{found.weight_at_the_end:.4g}{' (its limit)' if found.weight_at_limit else ''}"
            f"{'' if found.met else advice}"
        )


def monitors_of_batch(
    training: bool, state: TrainerState, monitor: RoutingMonitor, closest: ClosestToTarget | None
) -> list[RoutingMonitor]:
    """The monitors that observe a batch: `monitor` in validation and in training steps that are logged, and
    that of a target rate in every training step.
    """
    step = state.global_step + 1
    logged = step % state.logging_steps == 0 or step == state.max_steps
    monitors = [monitor] if logged or not training else []
    if training and closest and closest.observes_steps:
        monitors.append(closest.monitor)
    return monitors
