"""LocalityTrainer: transformers' Trainer with the locality and balance terms added to the loss, and their
logging.

Letters: L layers, B rows, T tokens a row, E experts, K chosen experts a token.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from config import LocalitySettings
from locality.balance import balance_loss
from locality.gate_recorder import GateRecorder
from locality.monitor import RoutingMonitor, ecr_per_layer, lru_hit_rate
from locality.objectives import load_objective
from locality.pairs import IGNORED_LABEL, pair_mask
from models import MoeLayer, find_moe_layers
from routing import RouterTap


class RunningMeans:
    """Weighted means of scalars since the last reading; keeps tensors, so that no step waits for a device."""

    def __init__(self):
        self._sums: dict[str, Any] = defaultdict(float)
        self._weights: dict[str, Any] = defaultdict(float)

    def add(self, weight: Any = 1.0, **values: Any) -> None:
        for name, value in values.items():
            self._sums[name] = (
                self._sums[name] + (value.detach() if torch.is_tensor(value) else value) * weight
            )
            self._weights[name] = self._weights[name] + weight

    def read(self, accelerator) -> dict[str, float]:
        """The means over all ranks; starts anew. Every rank must call it."""
        names = sorted(self._sums)
        totals = torch.tensor(
            [[float(self._sums[n]), float(self._weights[n])] for n in names], dtype=torch.float64
        )
        self._sums.clear()
        self._weights.clear()
        if not names:
            return {}
        totals = accelerator.reduce(totals.float().to(accelerator.device), "sum")
        return {name: (total / weight).item() for name, (total, weight) in zip(names, totals, strict=True)}


class LocalityTrainer(Trainer):
    """Adds `weight * objective + alpha * balance` of the tapped routers to the language-model loss.

    `trained_layers` are the MoE layers whose pairs the objective sees (all when none are named); what is
    logged (`ecr`, `hit_rate_lru_25`, the histogram) covers every layer. Batches carry `segment_ids` (see
    data_pipeline.collate).
    """

    def __init__(self, *args, locality: LocalitySettings, trained_layers: Sequence[MoeLayer] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.model: PreTrainedModel
        self.locality = locality
        self.moe_layers = find_moe_layers(self.model)
        self._trained = {layer.index for layer in trained_layers} or None
        self._objective = load_objective(locality.consecutive_expert_loss_type)
        self._means = {True: RunningMeans(), False: RunningMeans()}
        self._monitors = {True: RoutingMonitor(self.moe_layers), False: RoutingMonitor(self.moe_layers)}
        self.ecr_per_layer: dict[str, Any] = {}
        """`train` and `eval` -> ECR of each layer at the last log entry; for the TensorBoard callback."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        segments_BT = inputs.pop("segment_ids")
        gates, monitor = GateRecorder(*segments_BT.shape), self._monitor_of_this_step()
        with RouterTap(self.model, self.moe_layers, [gates, *([monitor.recorder] if monitor else [])]):
            lm_loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        terms = self._terms(gates, segments_BT, inputs["labels"])
        self._note(lm_loss, terms, inputs["labels"])
        if monitor:
            monitor.add(segments_BT)
        loss = lm_loss + self._weighted(terms)
        return (loss, outputs) if return_outputs else loss

    def _terms(self, gates: GateRecorder, segments_BT: Tensor, labels_BT: Tensor) -> dict[str, Tensor]:
        """The terms, unweighted: means over pairs, tokens and layers."""
        logits_LBTE, chosen_LBTK = gates.logits(self._trained), gates.chosen(self._trained)
        mask_BP = pair_mask(segments_BT, labels_BT, self.locality.locality_on_prompt)
        valid_T = segments_BT.flatten() > 0
        return {
            "locality_loss": self._objective(logits_LBTE, chosen_LBTK, mask_BP),
            "balance_loss": balance_loss(logits_LBTE.flatten(1, 2), chosen_LBTK.flatten(1, 2), valid_T),
        }

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """What is added to the loss: like the model's own loss a share of an accumulated batch."""
        settings = self.locality
        total = settings.consecutive_expert_loss_weight * self._share_of_weight() * terms["locality_loss"]
        total = total + settings.aux_loss_alpha * terms["balance_loss"]
        return total / self._parts_of_a_step()

    def _share_of_weight(self) -> float:
        """What the schedule leaves of the locality weight at this step, in [0, 1]."""
        if self.locality.locality_schedule == "constant":
            return 1.0
        return 1 - self.state.global_step / max(self.state.max_steps, 1)

    def _parts_of_a_step(self) -> int:
        scaled = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if self.model.training and scaled else 1

    def _note(self, lm_loss: Tensor, terms: dict[str, Tensor], labels_BT: Tensor) -> None:
        """Remembers what the next log entry will say."""
        training = self.model.training
        weight = 1.0 if training else (labels_BT[:, 1:] != IGNORED_LABEL).sum()
        self._means[training].add(weight, lm_loss=lm_loss * self._parts_of_a_step(), **terms)

    def _monitor_of_this_step(self) -> RoutingMonitor | None:
        """Where routing is looked at: on every validation batch, and on training steps that log."""
        training = self.model.training
        return self._monitors[training] if not training or self._logs_after_this_step() else None

    def _logs_after_this_step(self) -> bool:
        step = self.state.global_step + 1
        return step % self.state.logging_steps == 0 or step == self.state.max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self._summary(training=True)
        super().log(logs, start_time)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        self._means[False].read(self.accelerator)
        self._monitors[False].trace()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        summary = self._summary(training=False)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in summary.items()})
        return output

    def _summary(self, training: bool) -> dict[str, float]:
        """Means of the losses, and what the routing of the observed batches gives, over all ranks."""
        trace, means = self._monitors[training].trace(), self._means[training]
        if trace:
            per_layer = ecr_per_layer(trace)
            self.ecr_per_layer["train" if training else "eval"] = per_layer
            means.add(trace.steps, ecr=float(per_layer.mean()), hit_rate_lru_25=lru_hit_rate(trace))
        return means.read(self.accelerator)
