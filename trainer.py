"""LocalityTrainer: transformers' Trainer with the terms of locality added to the loss, and their logging.

Letters: L layers, B rows, T tokens a row, E experts, K chosen experts a token, V vocabulary.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.trainer import OPTIMIZER_NAME

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.checkpoints import (
    checkpoints_kept,
    complete_checkpoints,
    damage,
    names_of,
    step_of,
    whole_checkpoints,
    write_checksums,
)
from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.errors import UserError, first_line
from dwellmoe.families import MoeLayer
from dwellmoe.families.not_finite import check_finite, refuse_nan
from dwellmoe.files import give_usual_modes
from dwellmoe.loading import PICKLE
from dwellmoe.locality.balance import UsesOfAStep, balance_over_layers, request_groups
from dwellmoe.locality.closest_to_target import ClosestToTarget, monitors_of_batch
from dwellmoe.locality.loss import Gates, LocalityLoss
from dwellmoe.locality.monitor import (
    RoutingMonitor,
    RunningMeans,
    collapsed_layers,
    experts_used,
    refuse_collapse,
    sum_over_ranks,
)
from dwellmoe.locality.rates import ecr_per_layer, lru_hit_rate
from dwellmoe.locality.reference_model import as_reference, distillation_loss, gate_kl_loss
from dwellmoe.locality.rerouted_training import TrainingCache
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.locality.targets import target_of
from dwellmoe.log import warn_once
from dwellmoe.plots import ecr_heatmap

FORMATS = (*PICKLE, SafetensorError)
"""What reading a file of another format raises."""


class Reference(NamedTuple):
    """What the reference model gives on a batch."""

    logits: tuple[Tensor, ...]
    """Of its gates: [B, T, E] a layer."""
    logits_BTV: Tensor


class LocalityTrainer(Trainer):
    """Adds the weighted terms to the language-model loss: locality and balance of the routers, and distances
    from the reference model that have a weight.

    `trained_layers` are the MoE layers whose pairs the objective sees (all when none are named); what is
    logged (`ecr`, `hit_rate_lru_25`, the histogram) covers every layer. Batches carry `segment_ids` (see
    dwellmoe.data.collate). `control_losses`: (step, validation loss) of a run without locality, from which a
    budget of loss is counted. `records`: file name -> JSON value, written into every folder that is saved.
    """

    def __init__(
        self,
        *args,
        locality: LocalitySettings,
        trained_layers: Sequence[MoeLayer] = (),
        control_losses: Sequence[tuple[int, float]] = (),
        records: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.model: PreTrainedModel
        self.records = records or {}
        self.locality = locality
        self._loss = LocalityLoss(
            self.model,
            locality.consecutive_expert_loss_type,
            layers=[layer.layer_id for layer in trained_layers] or None,
            on_prompt=locality.locality_on_prompt,
        )
        self.moe_layers = self._loss.moe_layers
        self._trained_layers = trained_layers or self.moe_layers
        self._rerouting = self._training_cache()
        self._uses = UsesOfAStep(sum_over_ranks)
        self._means = {True: RunningMeans(), False: RunningMeans()}
        self._monitors = {True: RoutingMonitor(self.moe_layers), False: RoutingMonitor(self.moe_layers)}
        self._used_before_L: list[int] | None = None
        self.ecr_per_layer: dict[str, Any] = {}
        """`train` and `eval` -> ECR of each layer at the last log entry; for `RoutingFigures`."""
        self.add_callback(NoInputGradients())
        self.closest_to_target = self._target_callback(control_losses)
        """Adapts the locality weight, where a target is given."""

    def create_optimizer(self, *args, **kwargs):
        with _refused_options("--optim"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        with _refused_options("--lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        with _readable(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint and not self.is_deepspeed_enabled and not (Path(checkpoint) / OPTIMIZER_NAME).exists():
            warn_once(
                f"'{checkpoint}' holds no {OPTIMIZER_NAME} (--save_only_model): optimizer and learning "
                "rate's schedule begin anew"
            )
        with _readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint):
        with _readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _training_cache(self) -> TrainingCache | None:
        settings = self.locality
        if settings.train_rerouting is None:
            return None
        cache = settings.train_rerouting_cache
        return TrainingCache(self.model, self.moe_layers, settings.train_rerouting, cache)

    def _target_callback(self, control_losses: Sequence[tuple[int, float]]) -> ClosestToTarget | None:
        settings = self.locality
        target = target_of(settings.target_ecr, settings.target_hit_rate, settings.quality_budget)
        if target is None:
            return None
        weight = settings.consecutive_expert_loss_weight
        callback = ClosestToTarget(target, weight, self.moe_layers, control_losses)
        self.add_callback(callback)
        return callback

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs: Any
        segments_BT, labels_BT = inputs.pop("segment_ids"), inputs["labels"]
        reference = self._run_reference_model(inputs, segments_BT)
        training = self.model.training
        monitors = monitors_of_batch(training, self.state, self._monitors[training], self.closest_to_target)
        cache = self._rerouting and self._rerouting.of_batch(segments_BT, labels_BT)
        with self._loss.watch([monitor.recorder for monitor in monitors], cache):
            lm_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        gates = self._loss.gates(segments_BT)
        terms = self._terms(gates, segments_BT, labels_BT)
        if reference:
            terms |= self._distances(gates, outputs["logits"], reference, segments_BT, labels_BT)
        self._remember(lm_loss, terms, labels_BT)
        for monitor in monitors:
            monitor.add(segments_BT)
        loss = lm_loss + self._weighted(terms)
        self._refuse_nan(loss, inputs)
        return (loss, outputs) if return_outputs else loss

    def _refuse_nan(self, loss: Tensor, inputs: dict) -> None:
        """UserError for a loss that is NaN, for after the step every trained weight would be. In validation
        only where the model makes it so: a batch may have no answer.
        """
        with self._told_how_to_go_on():
            refuse_nan(self.model, loss, inputs)
            if self.model.training and torch.isnan(loss).any():
                raise UserError("the loss is NaN, though the model's weights are finite")

    @contextmanager
    def _told_how_to_go_on(self) -> Iterator[None]:
        """Adds to an error of training where it came, and what the user can do."""
        try:
            yield
        except UserError as error:
            if not (step := self.state.global_step):
                raise
            whole = names_of(complete_checkpoints(self._folder))
            advice = f"train with a smaller --learning_rate; complete checkpoints: {whole}"
            raise UserError(f"after step {step}: {error}; {advice}") from None

    def _run_reference_model(self, inputs: dict, segments_BT: Tensor) -> Reference | None:
        """What the reference model gives on this batch, where training compares with it."""
        if not (self.locality.compares_with_reference and self.model.training):
            return None
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        with as_reference(self.model), self._loss.watch([]):
            logits_BTV = self.model(**unlabelled).logits
        return Reference(self._loss.gates(segments_BT).logits, logits_BTV)

    def _terms(self, gates: Gates, segments_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """Locality and balance, unweighted: means over pairs, tokens and layers."""
        return {
            "locality_loss": self._loss.term(gates, segments_BT, labels_BT),
            "balance_loss": self._balance(gates, segments_BT),
        }

    def _balance(self, gates: Gates, segments_BT: Tensor) -> Tensor:
        """The balance of the batch, of each request, or of the step over all ranks so far.

        Without a weight it is only logged, and gets no gradient.
        """
        valid_T, scope = segments_BT.flatten() > 0, self.locality.balance_scope
        group_T = request_groups(segments_BT) if scope == "sequence" else None
        counts_LE = None
        if scope == "global" and self.model.training:
            step, experts = self.state.global_step, gates.logits[0].shape[-1]
            chosen_LTK = torch.stack(gates.chosen).flatten(1, 2)
            counts_LE = self._uses.add(step, chosen_LTK, valid_T, experts)
        with nullcontext() if self.locality.aux_loss_alpha else torch.no_grad():
            return balance_over_layers(gates.logits, gates.chosen, valid_T, group_T, counts_LE)

    def _distances(
        self,
        gates: Gates,
        logits_BTV: Tensor,
        reference: Reference,
        segments_BT: Tensor,
        labels_BT: Tensor,
    ) -> dict[str, Tensor]:
        """How far the model is from its reference model, unweighted; what has no weight is not computed."""
        terms = {}
        if self.locality.distillation_weight:
            terms["distillation_loss"] = distillation_loss(logits_BTV, reference.logits_BTV, labels_BT)
        if self.locality.gate_kl_weight:
            terms["gate_kl_loss"] = gate_kl_loss(gates.logits, reference.logits, segments_BT > 0)
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
        """The objective's weight at this step, by the controller or by the schedule."""
        if self.closest_to_target:
            return self.closest_to_target.controller.weight
        weight = self.locality.consecutive_expert_loss_weight
        if self.locality.locality_schedule == "constant":
            return weight
        return weight * (1 - self.state.global_step / max(self.state.max_steps, 1))

    def _parts_of_a_step(self) -> int:
        scaled = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if self.model.training and scaled else 1

    def _remember(self, lm_loss: Tensor, terms: dict[str, Tensor], labels_BT: Tensor) -> None:
        """Keeps the losses for the next log entry."""
        training = self.model.training
        weight = 1.0 if training else int((labels_BT[:, 1:] != IGNORED_LABEL).sum())
        if weight:  # the mean over no tokens is no number
            self._means[training].add(weight, lm_loss=lm_loss * self._parts_of_a_step(), **terms)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self._summary(training=True) | {"locality_weight": self.locality_weight}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        trained = ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)
        with self._told_how_to_go_on():
            check_finite(trained, "the trained model is not saved")
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self._folder)
            for name, value in self.records.items():
                (folder / name).write_text(json.dumps(value, indent=1) + "\n")
            give_usual_modes(folder)

    def _save_checkpoint(self, model, trial):
        checkpoint = self._folder / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:  # what a killed or damaged save left would stay among the new files
            shutil.rmtree(checkpoint, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        with checkpoints_kept(self._folder, checkpoint):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each rank of DeepSpeed writes files of its own
            if self.args.should_save:
                give_usual_modes(checkpoint)
                write_checksums(checkpoint)

    @property
    def _folder(self) -> Path:
        return Path(self.args.output_dir or ".")

    def _load_best_model(self) -> None:
        """Loads the best checkpoint that is whole; without one the weights of the last step stay."""
        best = self._best_whole_checkpoint()
        self.state.best_model_checkpoint = best and str(best)
        if best:
            self.state.best_global_step = step_of(best)
            super()._load_best_model()
        else:
            warn_once("no checkpoint with a validation is whole: the weights of the last step are kept")

    def _best_whole_checkpoint(self) -> Path | None:
        # By its name: the run's folder may have been moved since.
        best = self._folder / Path(self.state.best_model_checkpoint or "").name
        if not (fault := damage(best)):
            return best
        warn_once(f"'{best}', the best checkpoint, is left out: {fault}")
        metric = self.args.metric_for_best_model or ""
        scores = {entry["step"]: entry[metric] for entry in self.state.log_history if metric in entry}
        whole = [path for path in whole_checkpoints(self._folder) if step_of(path) in scores]
        order = max if self.args.greater_is_better else min
        return order(whole, key=lambda path: scores[step_of(path)], default=None)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._means[False].read()
        self._monitors[False].trace()
        output: Any = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        summary = self._summary(training=False)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in summary.items()})
        if self.closest_to_target and metric_key_prefix == "eval":
            error = self.closest_to_target.error(output.metrics, self.state.global_step)
            output.metrics["eval_target_error"] = error
        return output

    def _summary(self, training: bool) -> dict[str, float]:
        """Means of the losses, and locality of the observed batches, over all ranks."""
        trace, means = self._monitors[training].trace(), self._means[training]
        if trace:
            per_layer = ecr_per_layer(trace)
            self.ecr_per_layer["train" if training else "eval"] = per_layer
            means.add(trace.steps, ecr=float(per_layer.mean()), hit_rate_lru_25=lru_hit_rate(trace))
            if self.closest_to_target and self.closest_to_target.target.kind == "hit_rate":
                means.add(trace.steps, hit_rate_target=self.closest_to_target.target.measure(trace))
        if not training:
            self._refuse_collapse(trace)
        return means.read()

    def _refuse_collapse(self, trace: RoutingTrace | None) -> None:
        """Raises UserError, on every rank, where training left a trained layer with only a few experts."""
        used_L, tokens = self._used_experts(trace)
        if self.state.global_step == 0:
            self._used_before_L = used_L
        found = collapsed_layers(self._trained_layers, used_L, tokens)
        if found and self._used_before_L is None and isinstance(self.model, PeftModel):
            self._used_before_L = self._used_by_reference_model()
        for layer in found:
            before = self._used_before_L[layer.index] if self._used_before_L else None
            refuse_collapse(layer, used_L[layer.index], before)

    def _used_experts(self, trace: RoutingTrace | None) -> tuple[list[int], int]:
        """Distinct experts of each MoE layer and the number of tokens, over all ranks."""
        experts = self.moe_layers[0].num_experts
        uses_LE = experts_used(trace) if trace else np.zeros((len(self.moe_layers), experts))
        uses_LE = sum_over_ranks(torch.tensor(uses_LE, dtype=torch.float32))
        tokens = sum_over_ranks(torch.tensor(trace.steps if trace else 0))
        return (uses_LE > 0).sum(-1).tolist(), int(tokens)

    def _used_by_reference_model(self) -> list[int]:
        """Distinct experts that each MoE layer of the reference model uses over the validation set."""
        monitor = RoutingMonitor(self.moe_layers)
        with as_reference(self.model), self._loss.watch([monitor.recorder]):
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                segments_BT = inputs.pop("segment_ids")
                self.model(**{name: value for name, value in inputs.items() if name != "labels"})
                monitor.add(segments_BT)
        return self._used_experts(monitor.trace())[0]


@contextmanager
def _refused_options(option: str) -> Iterator[None]:
    """UserError where transformers or torch refuse an option, or those that go with it, in their own ways."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, AssertionError, KeyError, ImportError) as error:
        raise UserError(f"{option}, or an option that goes with it: {first_line(error)}") from None


@contextmanager
def _readable(checkpoint: str | None) -> Iterator[None]:
    """UserError where a checkpoint's files are not what transformers and torch expect in them."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, *FORMATS) as error:
        if checkpoint is None:
            raise
        raise UserError(f"'{checkpoint}' cannot be resumed: {first_line(error)}") from None


HEAT_MAP_COLUMNS = 40


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


class NoInputGradients(TrainerCallback):
    """With checkpointed activations transformers has the embeddings ask for gradients, which only reentrant
    checkpoints need: all layers below the lowest trained one would be computed again, and backwards.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if args.activation_checkpointing:
            model.disable_input_require_grads()


class AnotherRun(TrainerCallback):
    """Lets a resumed run differ from the one whose checkpoint it goes on from: the best checkpoint is chosen
    among its own, and the optimizer's state takes over this run's options.
    """

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        state.best_metric = state.best_global_step = state.best_model_checkpoint = None
        state.log_history = [_without_scores(entry) for entry in state.log_history]
        rate = args.learning_rate
        for group in optimizer.param_groups:
            group["lr"] *= rate / (group.get("initial_lr") or rate)
            group["initial_lr"] = rate
            if "betas" in group:
                group["betas"] = (args.adam_beta1, args.adam_beta2)
        optimizer.param_groups[0]["weight_decay"] = args.weight_decay  # the others never decay
        lr_scheduler.base_lrs = [rate for _ in lr_scheduler.base_lrs]


def _without_scores(entry: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if not name.startswith("eval_")}
