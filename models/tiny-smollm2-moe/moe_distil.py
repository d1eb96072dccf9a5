"""The last stage: the whole MoE is trained towards the dense model's next-token distribution.

Letters: T tokens, V vocabulary.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from dwellmoe.locality.balance import balance_loss
from moe_heal import BALANCE_WEIGHT

BATCH_ROWS = 2
SAVE_STEPS = 10


def distil(
    moe: Any, dense: Any, rows: Tensor, folder: Path, *, learning_rate: float, seed: int
) -> list[dict]:
    """Trains the MoE blocks, one pass over the rows; all else stays as the dense model has it.

    Goes on from the last checkpoint in `folder`. Returns the log of the losses.
    """
    for name, parameter in moe.named_parameters():
        parameter.requires_grad_(".mlp." in name)
    dataset = Dataset.from_dict({"input_ids": rows.tolist()}).with_format("torch")
    trainer = Distiller(moe, _arguments(folder, learning_rate, seed), train_dataset=dataset)
    # In autocast it would compute the same, and cast every weight at every step.
    trainer.dense = copy.deepcopy(dense).to(torch.bfloat16).eval()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.exists() else None)
    moe.eval()
    return [entry for entry in trainer.state.log_history if "divergence" in entry]


def _arguments(folder: Path, learning_rate: float, seed: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        bf16=True,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_ROWS,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=4,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=10,
        save_steps=SAVE_STEPS,
        save_total_limit=1,
        report_to="none",
        seed=seed,
    )


class Distiller(Trainer):
    """The Trainer with the divergence from the dense model, and the balance of the routers, for a loss."""

    dense: nn.Module

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Experts are saved under their published names, which the Trainer's own way to load skips.
        moe: Any = model or self.model
        saved = type(moe).from_pretrained(resume_from_checkpoint, dtype=moe.dtype)
        moe.load_state_dict(saved.state_dict())

    def compute_loss(self, model: Any, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            wanted = self.dense(input_ids=inputs["input_ids"]).logits
        outputs = model(input_ids=inputs["input_ids"], output_router_logits=True)
        divergence = kl_divergence(outputs.logits.flatten(0, 1), wanted.flatten(0, 1))
        top_k = model.config.num_experts_per_tok
        terms = [balance_loss(logits, logits.topk(top_k).indices) for logits in outputs.router_logits]
        balance = torch.stack(terms).mean()
        if self.state.global_step % self.args.logging_steps == 0:
            self.log({"divergence": divergence.item(), "balance": balance.item()})
        loss = divergence + BALANCE_WEIGHT * balance
        return (loss, outputs) if return_outputs else loss


def kl_divergence(logits_TV: Tensor, wanted_TV: Tensor) -> Tensor:
    """Mean over tokens of KL(wanted || given), in nats."""
    given, wanted = (logits.float().log_softmax(-1) for logits in (logits_TV, wanted_TV))
    return nn.functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
