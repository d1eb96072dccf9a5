"""Trains tiny-olmoe from scratch on the train splits of five data sets and writes everything in this folder.

    python models/tiny-olmoe/pretrain.py --output_dir models/tiny-olmoe --work_dir results/tiny-olmoe

An interrupted run goes on from the last checkpoint in the work folder. Routers are balanced over each batch,
as those of large models are, so that their routing is no more local than theirs.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import load_task
from dwellmoe.locality.balance import balance_loss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Share of each train split; the second half of hellaswag is kept unseen for fine-tuning.
TRAIN_SHARES = {"boolq": 1.0, "piqa": 1.0, "siqa": 1.0, "obqa": 1.0, "hellaswag": 0.5}
VOCABULARY = 4096
ROW_TOKENS = 256
TOP_K = 4
BALANCE_WEIGHT = 0.01
END, PAD = "<|endoftext|>", "<|pad|>"
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def texts_of(split: str) -> list[str]:
    """Prompt and answer of every example as one text."""
    texts = []
    for name, share in TRAIN_SHARES.items():
        examples = load_examples(load_task(name), split)
        if split == "train":
            examples = examples[: int(len(examples) * share)]
        texts += [example.prompt + example.answer for example in examples]
    return texts


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; digits stand alone so that numbers are spelled the same everywhere."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END, PAD], initial_alphabet=alphabet),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=1024,
        chat_template=CHAT_TEMPLATE,
    )


def pack(texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> Dataset:
    """Shuffled texts, an end token after each, cut into rows of ROW_TOKENS."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False)["input_ids"]
    stream = [token for ids in encoded for token in [*ids, tokenizer.eos_token_id]]
    rows = [stream[i : i + ROW_TOKENS] for i in range(0, len(stream) - ROW_TOKENS + 1, ROW_TOKENS)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows}).with_format("torch")


def new_model(tokenizer: PreTrainedTokenizerFast) -> OlmoeForCausalLM:
    """6 layers of 32 experts, 4 of them a token; 12.3 M parameters."""
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=96,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            num_experts=32,
            num_experts_per_tok=TOP_K,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=int(tokenizer.vocab[END]),
            pad_token_id=int(tokenizer.vocab[PAD]),
            router_aux_loss_coef=0.0,
        )
    )


class BalancedTrainer(Trainer):
    """The Trainer, with the mean balance loss of the layers added."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs, output_router_logits=model.training)
        loss = outputs.loss
        if model.training:
            terms = [balance_loss(logits, logits.topk(TOP_K).indices) for logits in outputs.router_logits]
            balance = torch.stack(terms).mean()
            if self.state.global_step % self.args.logging_steps == 0:
                self.log({"balance_loss": balance.item(), "lm_loss": loss.item()})
            loss = loss + BALANCE_WEIGHT * balance
        return (loss, outputs) if return_outputs else loss


def training_arguments(args: argparse.Namespace) -> TrainingArguments:
    return TrainingArguments(
        output_dir=args.work_dir,
        use_cpu=not torch.cuda.is_available(),
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=3e-3,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        logging_steps=20,
        eval_strategy="steps",
        eval_steps=250,
        save_steps=250,
        save_total_limit=2,
        report_to="none",
        seed=args.seed,
    )


def draw_loss_curve(history: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for key, label in (("lm_loss", "train"), ("eval_loss", "held out")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step of 4,096 tokens", ylabel="loss (nats a token)", title="tiny-olmoe from scratch")
    axes.legend()
    figure.savefig(path, dpi=120)


def held_out_losses(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Perplexity a data set, over every token of packed rows of its validation split."""
    perplexities = {}
    for name in TRAIN_SHARES:
        texts = [example.prompt + example.answer for example in load_examples(load_task(name), "validation")]
        rows = pack(texts, tokenizer, seed=0)["input_ids"][:64]
        with torch.no_grad():
            perplexities[name] = math.exp(
                model(input_ids=torch.stack(list(rows)), labels=torch.stack(list(rows))).loss.item()
            )
    return perplexities


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--output_dir", type=Path, default=here, help="folder of the model [this one]")
    parser.add_argument("--work_dir", type=Path, default=Path("results/tiny-olmoe"), help="its checkpoints")
    parser.add_argument("--num_train_epochs", type=float, default=1.0, help="passes over the text [1]")
    parser.add_argument("--max_steps", type=int, default=-1, help="optimizer steps; -1: all of the epochs")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and dropout [0]")
    args = parser.parse_args()
    set_seed(args.seed)
    train_texts = texts_of("train")
    tokenizer = train_tokenizer(train_texts)
    train_rows = pack(train_texts, tokenizer, args.seed)
    held_out_rows = pack(texts_of("validation"), tokenizer, 0)
    print(f"{len(train_texts)} texts, {len(train_rows) * ROW_TOKENS} tokens", flush=True)
    model: Any = new_model(tokenizer)
    trainer = BalancedTrainer(
        model,
        training_arguments(args),
        train_dataset=train_rows,
        eval_dataset=held_out_rows.select(range(192)),
    )
    trainer.train(
        resume_from_checkpoint=get_last_checkpoint(args.work_dir) if args.work_dir.exists() else None
    )
    model.to(dtype=torch.bfloat16).save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    draw_loss_curve(trainer.state.log_history, args.output_dir / "loss_curve.png")
    saved = AutoModelForCausalLM.from_pretrained(args.output_dir, dtype=torch.float32).eval()
    record = {
        "train_tokens": len(train_rows) * ROW_TOKENS,
        "parameters": saved.num_parameters(),
        "held_out_perplexity": held_out_losses(saved, tokenizer),
        "history": trainer.state.log_history,
    }
    (args.output_dir / "training_log.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["held_out_perplexity"], indent=1))


if __name__ == "__main__":
    main()
