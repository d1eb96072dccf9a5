"""`LocalityCallback`: the locality term in any transformers Trainer, unmodified."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from dwellmoe.errors import UserError
from dwellmoe.locality.closest_to_target import ClosestToTarget, monitors_of_batch
from dwellmoe.locality.loss import LocalityLoss
from dwellmoe.locality.monitor import RoutingMonitor, RunningMeans
from dwellmoe.locality.objectives import load_objective
from dwellmoe.locality.pairs import segments_of
from dwellmoe.locality.rates import ecr_per_layer
from dwellmoe.locality.targets import target_of


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
