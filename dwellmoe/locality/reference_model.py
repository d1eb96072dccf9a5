"""Distances from the reference model, the model before training: of the next token, and of the gates.

Letters: L layers, B rows, T tokens a row, V vocabulary, E experts. The reference side carries no gradient.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor

from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.locality.by_layer import Layers, mean_over_layers


@contextmanager
def as_reference(model: torch.nn.Module) -> Iterator[None]:
    """Within the block the model is what it was before training: adapters and fully trained gates are off,
    nothing is recorded for a gradient.
    """
    assert isinstance(model, PeftModel), "only a model with adapters holds its reference model"
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.disable_adapter():
            yield
    finally:
        model.train(was_training)


def distillation_loss(logits_BTV: Tensor, reference_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """KL(reference || trained) of the next-token distribution: the mean over the tokens that predict a label;
    natural log. Hinton 2015 at temperature 1.
    """
    predicts = labels_BT[:, 1:] != IGNORED_LABEL
    return mean_kl(logits_BTV[:, :-1][predicts], reference_BTV[:, :-1][predicts])


def gate_kl_loss(logits: Layers, reference: Layers, valid_BT: Tensor) -> Tensor:
    """KL(reference || trained) of the gate distributions: the mean over layers and valid tokens; natural log.
    The reference gate saw the reference model's hidden states.
    """

    def of_layer(logits_BTE: Tensor, reference_BTE: Tensor) -> Tensor:
        return mean_kl(logits_BTE[valid_BT], reference_BTE[valid_BT])

    return mean_over_layers(of_layer, logits, reference)


def mean_kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || trained) over the last dimension: the mean over all others, 0 where there are none."""
    log_q, log_p = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum() / max(log_p.shape[:-1].numel(), 1)
