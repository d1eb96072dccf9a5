"""What happens beside training: routing figures for TensorBoard, and a last validation; knows no loss."""

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

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
