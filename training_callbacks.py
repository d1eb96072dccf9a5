"""What happens beside training: figures for TensorBoard, a last validation, the dial; knows no loss."""

from typing import Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from plots import ecr_heatmap
from trainer import LocalityTrainer

HEAT_MAP_COLUMNS = 40


class EvaluateAtEnd(TrainerCallback):
    """Validates after the last step too, so that the last checkpoint can be the best one."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


class RoutingFigures(TrainerCallback):
    """Writes each layer's ECR to TensorBoard: a histogram at every entry, a heat map at every validation."""

    def __init__(self, trainer: LocalityTrainer):
        self._trainer = trainer
        self._steps: list[int] = []
        self._history: list[np.ndarray] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name, ecr_L in self._trainer.ecr_per_layer.items():
            if self._writer is not None:
                self._writer.add_histogram(f"{name}/ecr_per_layer", np.nan_to_num(ecr_L), state.global_step)
        if "train" in self._trainer.ecr_per_layer:
            self._steps.append(state.global_step)
            self._history.append(self._trainer.ecr_per_layer["train"])
        self._trainer.ecr_per_layer = {}

    def on_evaluate(self, args, state, control, **kwargs):
        if self._writer is None or not self._history:
            return
        stride = -(-len(self._steps) // HEAT_MAP_COLUMNS)
        layer_ids = [layer.layer_id for layer in self._trainer.moe_layers]
        figure = ecr_heatmap.draw(self._steps[::stride], self._history[::stride], layer_ids)
        self._writer.add_figure("train/ecr_heat_map", figure, state.global_step)

    @property
    def _writer(self):
        callbacks = self._trainer.callback_handler.callbacks
        found = (callback for callback in callbacks if isinstance(callback, TensorBoardCallback))
        return getattr(next(found, None), "tb_writer", None)


class HoldTarget(TrainerCallback, ExportableState):
    """Tells the trainer's dial what was measured, and keeps its state in the checkpoints."""

    def __init__(self, trainer: LocalityTrainer):
        assert trainer.target is not None and trainer.dial is not None, "there is no target to hold"
        self._trainer, self._target, self._dial = trainer, trainer.target, trainer.dial

    def state(self) -> dict:
        return {"args": {}, "attributes": {"dial": self._dial.state()}}

    def on_train_begin(self, args, state, control, **kwargs):
        states: Any = state.stateful_callbacks
        saved = states.setdefault(type(self).__name__, self.state())
        self._dial.restore(saved["attributes"]["dial"])

    def on_step_end(self, args, state, control, **kwargs):
        if self._target.kind == "budget":
            return
        rate = self._trainer.rate_of_step()
        if np.isfinite(rate):  # requests of one token have no pair
            self._dial.after_step(state.global_step, state.max_steps, rate)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if str(state.global_step) in self._dial.validated:
            return  # a resumed run that validates on its start
        value = self._trainer.controlled_value(metrics)
        if self._target.kind != "budget":
            self._dial.after_validation(state.global_step, value)
        else:
            validations = max(1.0, state.max_steps / state.eval_steps)
            self._dial.after_budget_validation(state.global_step, validations, value)

    def result(self) -> dict:
        """What was asked for and what the kept checkpoint reached, on the validation text."""
        state = self._trainer.state
        step = state.best_global_step or state.global_step
        value = self._dial.validated.get(str(step))
        return {
            "target": self._target.text,
            "asked": self._target.value,
            "reached": value,
            "deviation": None
            if value is None or self._target.kind == "budget"
            else value / self._target.value - 1,
            "met": value is not None and self._target.met_by(value),
            "step": step,
            "weight_at_the_end": self._dial.weight,
            "weight_at_limit": self._dial.at_limit,
        }

    def verdict(self) -> str:
        """The result in a sentence."""
        found = self.result()
        reached = "nothing measured" if found["reached"] is None else f"{found['reached']:.4f}"
        if found["deviation"] is not None:
            reached += f" ({found['deviation']:+.1%})"
        advice = "; more steps, a wider --train_scope or a nearer target may help"
        return (
            f"target {found['target']} {found['asked']:g} {'met' if found['met'] else 'NOT MET'}: reached "
            f"{reached} on the validation text at step {found['step']}, the locality weight ended at "
            f"{found['weight_at_the_end']:.4g}{' (its limit)' if found['weight_at_limit'] else ''}"
            f"{'' if found['met'] else advice}"
        )
