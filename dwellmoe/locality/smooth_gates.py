"""Smoothed gates: routers refitted in closed form, so that their logits change less from token to token.

A gate with weights W0 gets the W with the least

    mean |W x_t - W0 x_t|^2 + strength * mean |W x_t - W x_{t-1}|^2

over the hidden states x of a sample: W0 A (A + strength B)^-1, with A the mean of x x' and B that of the
differences' outer products. The gate keeps its response to what consecutive tokens share, and responds less
to what differs between them. Layers on whose gate the loss depends more are smoothed less. A slowness penalty
as in slow feature analysis (Wiskott and Sejnowski 2002, doi 10.1162/089976602317318938), with the gate itself
in the place of the unit variance.

Letters: B rows, T tokens a row, N tokens in all, P pairs, D hidden size, E experts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.families import MoeLayer, find_moe_layers, gate_matrix
from dwellmoe.locality.layer_sensitivity import sensitivities, strengths
from dwellmoe.locality.pairs import pair_mask

RIDGE = 1e-3
"""Share of the inputs' mean square by which both sides are held to W0 where the sample says nothing."""


class InputMoments:
    """Second moments of one gate's inputs, and of their change between consecutive tokens."""

    def __init__(self, hidden_size: int, device: torch.device):
        self.square_DD = torch.zeros(hidden_size, hidden_size, dtype=torch.float64, device=device)
        self.change_DD = torch.zeros_like(self.square_DD)
        self.tokens = self.pairs = 0

    def add(self, x_BTD: Tensor, valid_BT: Tensor, mask_BP: Tensor) -> None:
        """Counts the valid tokens and the pairs of a batch."""
        x_BTD = x_BTD.float()
        x_ND, change_PD = x_BTD[valid_BT], (x_BTD[:, 1:] - x_BTD[:, :-1])[mask_BP]
        with torch.autocast(x_BTD.device.type, enabled=False):
            self.square_DD += x_ND.T @ x_ND
            self.change_DD += change_PD.T @ change_PD
        self.tokens += len(x_ND)
        self.pairs += len(change_PD)

    @torch.no_grad()
    def smoothed(self, weight_ED: Tensor, strength: float) -> Tensor:
        """float32 [E, D]: the gate of least cost, scaled back to the spread that its logits had."""
        square_DD = self.square_DD / max(self.tokens, 1)
        kept_DD = square_DD.clone()
        kept_DD.diagonal().add_(RIDGE * square_DD.diagonal().mean())
        cost_DD = kept_DD + strength * self.change_DD / max(self.pairs, 1)
        before_ED = weight_ED.double()
        after_ED = torch.linalg.solve(cost_DD, kept_DD @ before_ED.T).T
        return (after_ED * (_spread(before_ED, square_DD) / _spread(after_ED, square_DD))).float()


def _spread(weight_ED: Tensor, square_DD: Tensor) -> Tensor:
    """Root mean square of the logits about a token's mean logit."""
    centred_ED = weight_ED - weight_ED.mean(0)
    return ((centred_ED @ square_DD) * centred_ED).sum().sqrt().clamp(min=1e-12)


def smoothed_gates(
    model: nn.Module,
    layers: Sequence[MoeLayer],
    batches: Iterable[dict],
    strength: float,
    *,
    on_prompt: bool = True,
) -> dict[int, Tensor]:
    """Index of each layer -> smoothed weights of its gate, float32 [E, D], over the batches of a collator.

    The strength is the mean over layers; see `layer_sensitivity.py`. Raises UserError for a router
    that is no linear map of the hidden states.
    """
    gates = {layer.index: gate_matrix(model, layer) for layer in layers}
    was_training = model.training
    model.eval()
    try:
        moments, seen = _measure(model, gates, batches, on_prompt)
        weights = {index: weight for index, (_, weight) in gates.items()}
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        changes = {
            names[id(weight)]: moments[index].smoothed(weight, strength) - weight
            for index, weight in weights.items()
        }
        sensitivity_of_each = sensitivities(model, changes, seen)
    finally:
        model.train(was_training)
    each = zip(weights.items(), strengths(strength, sensitivity_of_each), strict=True)
    return {index: moments[index].smoothed(weight, own) for (index, weight), own in each}


@torch.no_grad()
def _measure(
    model: nn.Module, gates: dict, batches: Iterable[dict], on_prompt: bool
) -> tuple[dict[int, InputMoments], list[dict]]:
    """The moments of each gate's inputs, and the batches as inputs of the model."""
    device = next(model.parameters()).device
    moments = {index: InputMoments(weight.shape[1], device) for index, (_, weight) in gates.items()}
    seen: dict[int, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(_keep(seen, index))
        for index, (modules, _) in gates.items()
        for module in modules
    ]
    taken: list[dict] = []
    try:
        for batch in tqdm(batches, desc="smooth gates", disable=None):
            inputs = {name: value.to(device) for name, value in batch.items() if torch.is_tensor(value)}
            segments_BT = inputs.pop("segment_ids")
            model(**inputs)
            counted_BT = segments_BT > 0
            if not on_prompt:
                counted_BT = counted_BT & (inputs["labels"] != IGNORED_LABEL)
            mask_BP = pair_mask(segments_BT, inputs["labels"], on_prompt)
            for index, x_TD in seen.items():
                moments[index].add(x_TD.reshape(*segments_BT.shape, -1), counted_BT, mask_BP)
            taken.append(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return moments, taken


def _keep(seen: dict[int, Tensor], index: int):
    def before_gate(_module: nn.Module, inputs: tuple) -> None:
        seen[index] = inputs[0]

    return before_gate


@torch.no_grad()
def set_gates(model: nn.Module, weights: dict[int, Tensor]) -> None:
    """Puts `smoothed_gates` into the gates that are trained; the reference copies stay."""
    for layer in find_moe_layers(model):
        if layer.index in weights:
            gate: Any = gate_matrix(model, layer)[1]
            assert gate.requires_grad, f"{layer.router} is not trained"
            gate.copy_(weights[layer.index])
