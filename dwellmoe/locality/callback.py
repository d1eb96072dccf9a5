"""Callbacks for transformers' Trainer: the locality term in any Trainer, and a weight adapted to a target.

`LocalityCallback` is all that an unmodified Trainer needs; `LocalityTrainer` (trainer.py) uses the others.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.locality.controller import LocalityController
from dwellmoe.locality.loss import LocalityLoss
from dwellmoe.locality.monitor import RoutingMonitor, RunningMeans, ecr_per_layer
from dwellmoe.locality.objectives import load_objective
from dwellmoe.locality.pairs import segments_of
from dwellmoe.locality.targets import Target, target_of


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


class LocalityCallback(TrainerCallback, ExportableState):
    """Adds `weight * objective` to the loss of an unmodified transformers Trainer, as LocalityTrainer does.

        Trainer(model, args, ..., callbacks=[LocalityCallback("js", weight=0.5)])

    objective, layers, on_prompt    as in `LocalityLoss`
    target_ecr, target_hit_rate     adapt the weight until the validation text has this ECR, or this hit rate
                                    ("lru@25%=0.8"); `weight` is then the first weight

    The term is added to the loss that the model itself returns, in training only: batches need `labels`, and
    label smoothing must be off. Training entries of the log get `locality_loss`, `ecr`, `locality_weight`,
    metrics of a validation `eval_ecr`. Reporters named in `report_to` run before every callback given to the
    Trainer and miss these numbers: pass `callbacks=[LocalityCallback(...), TensorBoardCallback()]` with
    `report_to="none"` instead. torch's DataParallel (one process, several devices) is not supported.
    """

    def __init__(
        self,
        objective: str = "js",
        weight: float = 0.5,
        *,
        layers: Iterable[int] | None = None,
        on_prompt: bool = True,
        target_ecr: float | None = None,
        target_hit_rate: str | None = None,
    ):
        load_objective(objective)
        self._target = target_of(target_ecr, target_hit_rate, None)
        if self._target and not weight > 0:
            raise UserError(f"weight {weight}: a target needs a weight above 0 to start from")
        self._options: dict[str, Any] = {
            "objective": objective,
            "weight": weight,
            "layers": None if layers is None else list(layers),
            "on_prompt": on_prompt,
        }
        self._targets = {"target_ecr": target_ecr, "target_hit_rate": target_hit_rate}
        self._means = {True: RunningMeans(), False: RunningMeans()}
        self._handles: list[RemovableHandle] = []
        self._closest: ClosestToTarget | None = None

    @property
    def weight(self) -> float:
        """The weight of the objective at this step."""
        return self._closest.controller.weight if self._closest else self._options["weight"]

    def state(self) -> dict:
        attributes = self._closest.state()["attributes"] if self._closest else {}
        return {"args": self._options | self._targets, "attributes": attributes}

    def on_train_begin(self, args, state, control, model: Any = None, train_dataloader=None, **kwargs):
        self._remove_hooks()
        self._args: TrainingArguments = args
        self._state: TrainerState = state
        self._micro_batches = _micro_batches(train_dataloader)
        self._loss = LocalityLoss(model, **self._options)
        self._monitors = {
            True: RoutingMonitor(self._loss.moe_layers),
            False: RoutingMonitor(self._loss.moe_layers),
        }
        states: Any = state.stateful_callbacks
        saved = states.setdefault(type(self).__name__, self.state())
        if self._target:
            self._closest = ClosestToTarget(self._target, self._options["weight"], self._loss.moe_layers)
            self._closest.controller.restore(saved["attributes"].get("controller", {}))
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]

    def on_train_end(self, args, state, control, **kwargs):
        self._remove_hooks()

    def on_step_end(self, args, state, control, **kwargs):
        if self._closest:
            self._closest.on_step_end(args, state, control)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not self._handles:
            return  # a validation outside of training
        found = {f"eval_{name}": value for name, value in self._summary(training=False).items()}
        metrics.update(found)
        state.log_history[-1].update(found)
        if self._closest:
            self._closest.on_evaluate(args, state, control, metrics)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._handles and "loss" in (logs or {}):
            found = self._summary(training=True) | {"locality_weight": self.weight}
            logs.update(found)
            state.log_history[-1].update(found)

    def _summary(self, training: bool) -> dict[str, float]:
        """Means over all ranks since the last summary."""
        means = self._means[training]
        if trace := self._monitors[training].trace():
            means.add(trace.steps, ecr=float(ecr_per_layer(trace).mean()))
            if self._target and self._target.kind == "hit_rate":
                means.add(trace.steps, hit_rate_target=self._target.measure(trace))
        return means.read()

    def _remove_hooks(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Opens the tap; the model does not get `segment_ids`, which it may not know."""
        self._batch = kwargs if kwargs.get("labels") is not None else None
        if self._batch is None and model.training:
            raise UserError(
                "LocalityCallback adds to the loss that the model returns, and the model got no labels: give "
                "batches with labels, and neither label smoothing nor a compute_loss_func"
            )
        if self._batch is not None:
            monitor = self._monitors[model.training]
            self._watched = monitors_of_batch(model.training, self._state, monitor, self._closest)
            self._loss.watch([monitor.recorder for monitor in self._watched]).__enter__()
        return args, {name: value for name, value in kwargs.items() if name != "segment_ids"}

    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Closes the tap and adds the term; runs also where the forward pass failed (output None)."""
        self._loss.__exit__(None, None, None)
        if self._batch is None or output is None:
            return output
        segments_BT = segments_of(self._batch)
        for monitor in self._watched:
            monitor.add(segments_BT)
        if not model.training:
            return output
        term = self._loss.term(self._loss.gates(segments_BT), segments_BT, self._batch["labels"])
        self._means[True].add(locality_loss=term)
        return _with_added_loss(output, self.weight * term / self._divisor("num_items_in_batch" in kwargs))

    def _divisor(self, loss_is_scaled: bool) -> int:
        """What makes the term its share of the optimizer step.

        Losses that the model has already divided by the step's tokens, the Trainer adds up over micro-batches
        and multiplies by the number of ranks, over which it averages gradients. Other losses it averages.
        """
        if not loss_is_scaled:
            return 1
        ranks = self._args.world_size if self._args.average_tokens_across_devices else 1
        return ranks * self._parts_of_a_step()

    def _parts_of_a_step(self) -> int:
        """Micro-batches of the optimizer step under way: fewer at the end of an epoch."""
        parts = self._args.gradient_accumulation_steps
        if self._micro_batches is None:
            return parts
        steps_per_epoch = -(-self._micro_batches // parts)
        last = (self._state.global_step + 1) % steps_per_epoch == 0
        return self._micro_batches % parts or parts if last else parts


def _micro_batches(loader: DataLoader | None) -> int | None:
    """Batches of an epoch, None where the data has no length."""
    try:
        return len(loader) if loader is not None else None
    except TypeError:
        return None


def _with_added_loss(output: Any, term: Tensor) -> Any:
    """The output of a model with `term` added to its loss."""
    if isinstance(output, tuple):
        return (output[0] + term, *output[1:])
    output["loss"] = output["loss"] + term
    return output
