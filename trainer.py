"""LocalityTrainer: transformers' Trainer with the locality and balance terms added to the loss, and their
logging.

Letters: L layers, B rows, T tokens a row, E experts, K chosen experts a token, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.checkpoints import checkpoints_kept
from dwellmoe.families import MoeLayer, find_moe_layers
from dwellmoe.locality.balance import UsesOfAStep, balance_loss, request_groups
from dwellmoe.locality.collapse import refuse_collapse
from dwellmoe.locality.controller import LocalityController
from dwellmoe.locality.gate_recorder import GateRecorder
from dwellmoe.locality.monitor import RoutingMonitor, ecr_per_layer, experts_used, lru_hit_rate
from dwellmoe.locality.objectives import load_objective
from dwellmoe.locality.pairs import IGNORED_LABEL, pair_mask
from dwellmoe.locality.reference_model import as_reference, distillation_loss, gate_kl_loss
from dwellmoe.locality.rerouted_training import TrainingCache
from dwellmoe.locality.running_means import RunningMeans
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.locality.targets import target_of
from dwellmoe.plots import ecr_heatmap
from dwellmoe.routing import RouterTap


class LocalityTrainer(Trainer):
    """Adds `weight * objective + alpha * balance` of the tapped routers, and the anchors that are asked for,
    to the language-model loss.

    `trained_layers` are the MoE layers whose pairs the objective sees (all when none are named); what is
    logged (`ecr`, `hit_rate_lru_25`, the histogram) covers every layer. Batches carry `segment_ids` (see
    dwellmoe.data.collate). `control_losses`: (step, validation loss) of a run without locality, against which
    a budget of loss is counted.
    """

    def __init__(
        self,
        *args,
        locality: LocalitySettings,
        trained_layers: Sequence[MoeLayer] = (),
        control_losses: Sequence[tuple[int, float]] = (),
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.model: PreTrainedModel
        self.locality = locality
        self.moe_layers = find_moe_layers(self.model)
        self._trained = {layer.index for layer in trained_layers} or None
        self._objective = load_objective(locality.consecutive_expert_loss_type)
        self._rerouting = self._training_cache()
        self._uses = UsesOfAStep(self._sum_over_ranks)
        self._means = {True: RunningMeans(), False: RunningMeans()}
        self._monitors = {True: RoutingMonitor(self.moe_layers), False: RoutingMonitor(self.moe_layers)}
        self.ecr_per_layer: dict[str, Any] = {}
        """`train` and `eval` -> ECR of each layer at the last log entry; for the TensorBoard callback."""
        self.target = target_of(locality.target_ecr, locality.target_hit_rate, locality.quality_budget)
        self.dial = self.target and LocalityController(
            self.target.value, locality.consecutive_expert_loss_weight
        )
        """Adapts the weight where a target is given; the callback `ClosestToTarget` tells it what was measured."""
        self.control_losses = control_losses
        self._step_monitor = RoutingMonitor(self.moe_layers)

    def _training_cache(self) -> TrainingCache | None:
        settings = self.locality
        if settings.train_rerouting is None:
            return None
        cache = settings.train_rerouting_cache
        return TrainingCache(self.model, self.moe_layers, settings.train_rerouting, cache)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs: Any
        segments_BT = inputs.pop("segment_ids")
        anchor = self._run_reference_model(inputs, segments_BT)
        gates, monitors = GateRecorder(*segments_BT.shape), self._monitors_of_this_step()
        observers = [gates, *(monitor.recorder for monitor in monitors)]
        virtual = self._rerouting and self._rerouting.of_batch(segments_BT, inputs["labels"])
        with RouterTap(self.model, self.moe_layers, observers, virtual):
            lm_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        terms = self._terms(gates, segments_BT, inputs["labels"])
        if anchor:
            terms |= self._anchors(gates, outputs["logits"], anchor, segments_BT, inputs["labels"])
        self._note(lm_loss, terms, inputs["labels"])
        for monitor in monitors:
            monitor.add(segments_BT)
        loss = lm_loss + self._weighted(terms)
        return (loss, outputs) if return_outputs else loss

    def _run_reference_model(self, inputs, segments_BT: Tensor) -> tuple[GateRecorder, Tensor] | None:
        """Gates and logits [B, T, V] of the reference model on this batch, where an anchor needs them."""
        if not (self.locality.anchored and self.model.training):
            return None
        gates = GateRecorder(*segments_BT.shape)
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        with as_reference(self.model), RouterTap(self.model, self.moe_layers, [gates]):
            return gates, self.model(**unlabelled).logits

    def _terms(self, gates: GateRecorder, segments_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """The terms, unweighted: means over pairs, tokens and layers."""
        logits_LBTE, chosen_LBTK = gates.logits(self._trained), gates.chosen(self._trained)
        mask_BP = pair_mask(segments_BT, labels_BT, self.locality.locality_on_prompt)
        return {
            "locality_loss": self._objective(logits_LBTE, chosen_LBTK, mask_BP),
            "balance_loss": self._balance(logits_LBTE.flatten(1, 2), chosen_LBTK.flatten(1, 2), segments_BT),
        }

    def _balance(self, logits_LTE: Tensor, chosen_LTK: Tensor, segments_BT: Tensor) -> Tensor:
        """The balance of the batch, of each request, or of the step over all ranks so far."""
        valid_T, scope = segments_BT.flatten() > 0, self.locality.balance_scope
        group_T = request_groups(segments_BT) if scope == "sequence" else None
        counts_LE = None
        if scope == "global" and self.model.training:
            step, experts = self.state.global_step, logits_LTE.shape[-1]
            counts_LE = self._uses.add(step, chosen_LTK, valid_T, experts)
        return balance_loss(logits_LTE, chosen_LTK, valid_T, group_T, counts_LE)

    def _anchors(self, gates: GateRecorder, logits_BTV: Tensor, anchor, segments_BT, labels_BT) -> dict:
        """How far the model is from its reference model, unweighted; what has no weight is not computed."""
        before, reference_BTV = anchor
        terms = {}
        if self.locality.distillation_weight:
            terms["distillation_loss"] = distillation_loss(logits_BTV, reference_BTV, labels_BT)
        if self.locality.gate_kl_weight:
            pair = gates.logits(self._trained), before.logits(self._trained)
            terms["gate_kl_loss"] = gate_kl_loss(*pair, segments_BT > 0)
        return terms

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """What is added to the loss: like the model's own loss a share of an accumulated batch."""
        weights = self._weights()
        total: Any = sum(weights[name] * term for name, term in terms.items())
        return total / self._parts_of_a_step()

    def _weights(self) -> dict[str, float]:
        settings = self.locality
        return {
            "locality_loss": self.locality_weight,
            "balance_loss": settings.aux_loss_alpha,
            "distillation_loss": settings.distillation_weight,
            "gate_kl_loss": settings.gate_kl_weight,
        }

    @property
    def locality_weight(self) -> float:
        """The weight of the objective at this step: the dial's, or what the schedule leaves of the option."""
        if self.dial:
            return self.dial.weight
        weight = self.locality.consecutive_expert_loss_weight
        if self.locality.locality_schedule == "constant":
            return weight
        return weight * (1 - self.state.global_step / max(self.state.max_steps, 1))

    def _parts_of_a_step(self) -> int:
        scaled = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if self.model.training and scaled else 1

    def _note(self, lm_loss: Tensor, terms: dict[str, Tensor], labels_BT: Tensor) -> None:
        """Remembers what the next log entry will say."""
        training = self.model.training
        weight = 1.0 if training else (labels_BT[:, 1:] != IGNORED_LABEL).sum()
        self._means[training].add(weight, lm_loss=lm_loss * self._parts_of_a_step(), **terms)

    def _monitors_of_this_step(self) -> list[RoutingMonitor]:
        """Where routing is looked at: on every validation batch, on training steps that log, and for a rate
        that is to be held on every one.
        """
        training = self.model.training
        looked_at = not training or self._logs_after_this_step()
        held = training and self.target is not None and self.target.kind != "budget"
        return [self._monitors[training]] * looked_at + [self._step_monitor] * held

    def rate_of_step(self) -> float:
        """The target's rate in the training step that just ended, over all ranks. Every rank must call it."""
        trace, mean = self._step_monitor.trace(), RunningMeans()
        assert trace is not None and self.target is not None, "no step was looked at"
        mean.add(trace.steps, rate=self.target.measure(trace))
        return mean.read(self.accelerator)["rate"]

    def _logs_after_this_step(self) -> bool:
        step = self.state.global_step + 1
        return step % self.state.logging_steps == 0 or step == self.state.max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self._summary(training=True) | {"locality_weight": self.locality_weight}
        super().log(logs, start_time)

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir or ".")
        with checkpoints_kept(folder, folder / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._means[False].read(self.accelerator)
        self._monitors[False].trace()
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        summary = self._summary(training=False)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in summary.items()})
        if self.target and metric_key_prefix == "eval":
            score = self.target.score(self.controlled_value(output.metrics), output.metrics)
            output.metrics["eval_target_error"] = score
        return output

    def controlled_value(self, metrics: dict[str, float]) -> float:
        """What the dial holds, out of the metrics of a validation: a rate, or the rise of the loss."""
        assert self.target is not None and self.dial is not None, "nothing is held"
        value = metrics[f"eval_{self.target.metric}"]
        return value if self.target.kind != "budget" else value - self.reference_loss(value)

    def reference_loss(self, loss: float) -> float:
        """What the validation loss is compared with at this step: the control run's at the same step, or that
        of the reference model, which is `loss` itself before the first step.
        """
        assert self.dial is not None, "nothing is held"
        if self.control_losses:
            steps, losses = np.array(self.control_losses).T
            return float(np.interp(self.state.global_step, steps, losses))
        if self.dial.reference_loss is None:
            self.dial.reference_loss = loss
        return self.dial.reference_loss

    def _summary(self, training: bool) -> dict[str, float]:
        """Means of the losses, and what the routing of the observed batches gives, over all ranks."""
        trace, means = self._monitors[training].trace(), self._means[training]
        if trace:
            per_layer = ecr_per_layer(trace)
            self.ecr_per_layer["train" if training else "eval"] = per_layer
            means.add(trace.steps, ecr=float(per_layer.mean()), hit_rate_lru_25=lru_hit_rate(trace))
            if self.target and self.target.kind == "hit_rate":
                means.add(trace.steps, hit_rate_target=self.target.measure(trace))
        if not training:
            self._refuse_collapse(trace)
        return means.read(self.accelerator)

    def _refuse_collapse(self, trace: RoutingTrace | None) -> None:
        """Raises UserError, on every rank, where a trained layer came down to a few experts."""
        first = self.moe_layers[0]
        uses_LE = experts_used(trace) if trace else np.zeros((len(self.moe_layers), first.num_experts))
        uses_LE = self._sum_over_ranks(torch.tensor(uses_LE, dtype=torch.float32))
        tokens = self._sum_over_ranks(torch.tensor(trace.steps if trace else 0))
        layers = [layer for layer in self.moe_layers if self._trained is None or layer.index in self._trained]
        refuse_collapse(layers, (uses_LE > 0).sum(-1).tolist(), int(tokens))

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        total: Any = self.accelerator.reduce(values.to(self.accelerator.device), "sum")
        return total


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


class ClosestToTarget(TrainerCallback, ExportableState):
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
