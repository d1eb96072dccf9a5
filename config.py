"""Every setting of training and evaluation, with its default written once."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from command_line import check_at_least, check_choice, split_list
from errors import UserError, first_line

PROJECT_FOLDER = Path(__file__).resolve().parent
SCHEDULES = ("constant", "linear")
BALANCE_SCOPES = ("batch", "sequence", "global")
TRAIN_SCOPES = {
    "router": (["gate"], []),
    "router_attention": (["attention"], ["gate"]),
    "all": (["auto"], ["gate"]),
}
"""What is trained -> modules with LoRA, and modules trained in full."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def _option(default: Any, help: str, **metadata: Any) -> Any:
    # argparse formats help texts with %.
    return field(default=default, metadata={"help": help.replace("%", "%%"), **metadata})


@dataclass
class ModelSettings:
    """Which model, under which label."""

    model_name: str = _option("models/tiny-olmoe", "folder of a checkpoint, or its name on the hub")
    model_key: str = _option("", "label in the folders of logs and results, e.g. _deepseek_16b")
    moe_module_name: str | None = _option(
        None, "attribute of the MoE block in a decoder layer, checked if given"
    )
    dtype: str = _option(
        "auto", f"type of the weights: {', '.join(DTYPES)}; auto is the checkpoint's, float32 on a CPU"
    )
    experts_implementation: str | None = _option(
        None, "transformers' way to run the experts: eager, grouped_mm, ..."
    )
    trust_remote_code: bool = _option(False, "run modelling code that the checkpoint brings along")

    def __post_init__(self):
        check_choice("dtype", self.dtype, DTYPES)


@dataclass
class DataSettings:
    """Which data, cut how."""

    dataset_name: str = _option("mmlu", "a folder of datasets/, or a path to a task.toml of your own")
    max_words_len: int = _option(512, "tokens an example: a longer prompt is cut on its left, and counted")
    packing: bool = _option(False, "put several requests into one row instead of padding")
    data_preprocess_only: bool = _option(False, "tokenise, cache, print the counts and stop")
    limit_train: int | None = _option(None, "use only so many training examples")
    limit_validation: int | None = _option(256, "use only so many validation examples; 0 is all")

    def __post_init__(self):
        check_at_least("max_words_len", self.max_words_len, 8)
        self.limit_validation = self.limit_validation or None


@dataclass
class AdapterSettings:
    """What is trained, and where it is saved."""

    lora_save_path: str = _option("./LoRA_models", "folder of checkpoints and of the final adapter")
    use_lora: bool = _option(True, "train LoRA adapters; without it every weight of the model is trained")
    lora_rank: int = _option(8, "rank of the adapters")
    lora_alpha: int = _option(32, "scale of the adapters (rank-stabilised: alpha / sqrt(rank))")
    target_modules: str = _option(
        "auto", "comma list of modules that get LoRA; auto: attention, experts, gate"
    )
    lora_extra_modules: str = _option("", "comma list of fully trained modules, e.g. gate")
    train_scope: str | None = _option(
        None,
        "short for the two options above: router (LoRA on the gate alone), router_attention (gate in full, "
        "LoRA on attention), all (gate in full, LoRA on attention and experts)",
    )
    daft_threshold: str = _option(
        "1.0", "train the layers whose ECR is below; 1.0 is every layer, q50 the lower half"
    )
    ecr_profile: str | None = _option(None, "profile to select by; default: measured on the training data")
    profile_examples: int = _option(64, "training examples that the profile is measured on")
    profile_only: bool = _option(False, "measure and write the ECR profile, then stop")
    save_merged: bool = _option(False, "also save the model with the adapter merged into it")
    overwrite_output: bool = _option(False, "start over where the folder holds checkpoints of an earlier run")

    def __post_init__(self):
        check_at_least("lora_rank", self.lora_rank, 1)
        if self.train_scope is not None:
            check_choice("train_scope", self.train_scope, tuple(TRAIN_SCOPES))
            if self.target_modules != "auto" or self.lora_extra_modules:
                raise UserError("give either --train_scope, or --target_modules and --lora_extra_modules")

    @property
    def target_names(self) -> list[str]:
        return TRAIN_SCOPES[self.train_scope][0] if self.train_scope else split_list(self.target_modules)

    @property
    def extra_names(self) -> list[str]:
        return TRAIN_SCOPES[self.train_scope][1] if self.train_scope else split_list(self.lora_extra_modules)


@dataclass
class LocalitySettings:
    """The terms that are added to the language-model loss."""

    consecutive_expert_loss_type: str = _option(
        "cache_miss",
        "objective of locality: a file of locality/objectives/, options as in reuse:window=4",
    )
    consecutive_expert_loss_weight: float = _option(
        0.5, "its weight; 0 measures but does not train for locality"
    )
    locality_schedule: str = _option(
        "constant", f"course of that weight over training: {', '.join(SCHEDULES)} (falls to 0 at the end)"
    )
    target_ecr: float | None = _option(
        None,
        "adapt the locality weight until the validation text has this ECR; the weight given is the first",
    )
    target_hit_rate: str | None = _option(
        None, "the same for the hit rate of a cache, e.g. lru@25%=0.8 (POLICY@CAPACITY=RATE)"
    )
    quality_budget: float | None = _option(
        None,
        "as much locality as a rise of the validation loss by this (nats; 0.01 is perplexity x 1.01) buys",
    )
    quality_reference: str | None = _option(
        None,
        "folder of a control run whose validation loss, step by step, the rise is counted from; default: the "
        "loss of the untouched model",
    )
    aux_loss_alpha: float = _option(0.0, "weight of the load-balancing loss")
    balance_scope: str = _option(
        "batch", "what must be balanced: a batch, each request (sequence), or the step of all ranks (global)"
    )
    distillation_weight: float = _option(
        0.0, "weight of KL(untouched model || trained) on the next token; costs another forward pass a step"
    )
    gate_trust_weight: float = _option(
        0.0, "weight of KL(untouched gate || trained gate); costs another forward pass a step"
    )
    locality_on_prompt: bool = _option(
        True, "count pairs of prompt tokens in the objective, not only the answer's"
    )

    smooth_gates: float = _option(
        0.0,
        "before training, refit the gates in closed form so that their logits change less from token to "
        "token; by how much: 1 a little, 4 much; 0 leaves them",
    )
    smooth_examples: int = _option(256, "training examples that the gates are refitted on")
    train_rerouting: str | None = _option(
        None,
        "train under a routing strategy of routing/strategies/, e.g. margin:loss=0.2: answers choose by "
        "what a cache holds, as they will once deployed",
    )
    train_rerouting_cache: str = _option("lru@25%", "that cache: POLICY@CAPACITY, a cache a layer")

    @property
    def has_target(self) -> bool:
        """Whether a target is given, for which the weight is adapted."""
        targets = (self.target_ecr, self.target_hit_rate, self.quality_budget)
        return any(target is not None for target in targets)

    @property
    def anchored(self) -> bool:
        """Whether training compares with the untouched model."""
        return self.distillation_weight > 0 or self.gate_trust_weight > 0

    def __post_init__(self):
        check_at_least("consecutive_expert_loss_weight", self.consecutive_expert_loss_weight, 0)
        for name in ("aux_loss_alpha", "distillation_weight", "gate_trust_weight", "smooth_gates"):
            check_at_least(name, getattr(self, name), 0)
        check_at_least("smooth_examples", self.smooth_examples, 1)
        check_choice("balance_scope", self.balance_scope, BALANCE_SCOPES)
        check_choice("locality_schedule", self.locality_schedule, SCHEDULES)
        if self.has_target:
            self._check_dial()
        if self.quality_reference is not None and self.quality_budget is None:
            raise UserError("--quality_reference is what --quality_budget is counted from: give that too")

    def _check_dial(self):
        if not self.consecutive_expert_loss_weight > 0:
            raise UserError("a target needs a --consecutive_expert_loss_weight above 0 to start from")
        if self.locality_schedule != "constant":
            raise UserError("a target sets the course of the locality weight: leave --locality_schedule out")


@dataclass
class TrainSettings(TrainingArguments):
    """transformers' own training options, with this project's defaults."""

    output_dir: str | None = _option(None, "set from lora_save_path")
    per_device_train_batch_size: int = _option(1, "requests a step and device", aliases=["--batch_size"])
    learning_rate: float = _option(1e-3, "highest learning rate")
    num_train_epochs: float = _option(1.0, "passes over the training data")
    logging_steps: float = _option(10, "steps between log entries")
    eval_strategy: str = _option("steps", "when to validate")
    eval_steps: float | None = _option(500, "steps between validations")
    save_steps: float = _option(500, "steps between checkpoints")
    load_best_model_at_end: bool = _option(
        True, "the saved adapter is the best checkpoint by validation loss"
    )
    metric_for_best_model: str | None = _option("eval_lm_loss", "what the best checkpoint is chosen by")
    greater_is_better: bool | None = _option(False, "whether more of it is better")
    report_to: str | None = _option("tensorboard", "where to log")
    remove_unused_columns: bool = _option(False, "fixed: the trainer needs its own columns")
    seed: int = _option(42, "seed of everything random")

    def __post_init__(self):
        self.output_dir = self.output_dir or AdapterSettings.lora_save_path
        # Without this, ranks on CPUs would not find one another.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        try:
            super().__post_init__()
        except (ValueError, OSError) as error:
            raise UserError(f"training options: {first_line(error)}") from None


SETTINGS = (ModelSettings, DataSettings, AdapterSettings, LocalitySettings, TrainSettings)


@dataclass
class EvaluationSettings:
    """What is measured of a trained model, on how much, and where the report goes."""

    control_path: str | None = _option(
        None, "adapter trained alike but without locality, reported as control"
    )
    split: str = _option("test", "what is measured on: test, validation or train")
    limit_evaluation: int | None = _option(
        None, "measure on a seeded sample of so many requests; 0 is all [256; of a benchmark all]"
    )
    limit: int | None = _option(None, "measure on so many requests in their order instead; each is answered")
    limit_start: int | None = _option(None, "the first of them, counted from 0; alone: all from there on")
    task_num: int | None = _option(None, "answer this request alone, counted from 0, and print the answer")
    input: str | None = _option(None, "answer this prompt of your own and print the answer")
    use_chat_template: str = _option(
        "auto", "ask through the model's chat template: on, off; auto: for the tasks that say so"
    )
    unfenced_code: bool = _option(
        False, "run generated programs even where the machine cannot isolate them: at your own risk"
    )
    generate_limit: int | None = _option(
        None, "generate answers to so many of them; 0 is none [24; of a benchmark all]"
    )
    choice_limit: int = _option(64, "rank the choices of so many of them by likelihood; 0 is none")
    max_new_tokens: int | None = _option(
        None, "tokens a generated answer may have [48; of a benchmark what its answers need]"
    )
    eval_batch_size: int = _option(16, "requests that run together on one rank")
    policies: str = _option("lru,lfu,opt,lopt:horizon=2", "eviction policies whose hit rates are reported")
    device_profile: str = _option("configs/devices/cfmoe_cpu.toml", "memory and bandwidths of a device")
    results_dir: str | None = _option(
        None, "folder of the report; default: ./results{model_key}/<data>-<adapters>"
    )
    json: str | None = _option(None, "also write the report to this file; - is standard output")
    bootstrap_samples: int = _option(2000, "resamples of the requests behind each 95 % interval")
    temperature: float = _option(0.0, "of the replies in a chat; 0 takes the likeliest token each time")
    chat_mode: bool = _option(False, "talk to the model; each reply shows its ECR and its LRU hit rate")

    def __post_init__(self):
        check_choice("split", self.split, ("train", "validation", "test"))
        check_choice("use_chat_template", self.use_chat_template, ("auto", "on", "off"))
        least = dict.fromkeys(
            ("limit_evaluation", "limit_start", "task_num", "generate_limit", "choice_limit"), 0
        )
        least |= dict.fromkeys(("limit", "max_new_tokens", "eval_batch_size", "bootstrap_samples"), 1)
        for name, bound in least.items():
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name), bound)
        check_at_least("temperature", self.temperature, 0)
        self._check_single()

    def _check_single(self):
        single = [name for name in ("task_num", "input") if getattr(self, name) is not None]
        many = ("limit", "limit_start", "limit_evaluation", "generate_limit")
        others = single[1:] + [name for name in many if getattr(self, name) is not None]
        if single and others:
            raise UserError(f"--{single[0]} asks for one answer: leave out --{others[0]}")


@dataclass
class EngineSettings:
    """The memory for experts of the offloading engine. Sizes: slots (8), percent (25%), or bytes (6GiB)."""

    expert_budget: str = _option(
        "25%", "memory for experts: slots a layer, percent of a layer's experts, or bytes, buffers included"
    )
    decode_policy: str = _option("lru", "eviction policy of the decode cache, of expert_cache/policies/")
    hand_over: str = _option("recent:tokens=8", "what a prompt leaves in the decode cache: shared, none, ...")
    prefill_policy: str = _option(
        "", "eviction policy of the prefill buffer between chunks; empty: it forgets what was used"
    )
    prefill_buffer: int = _option(8, "slots that a prompt's experts stream through")
    prefetch_budget: int = _option(2, "slots for experts foreseen for the next layer; 0: none")
    prefetch_predictor: str = _option(
        "gate_ahead",
        "who foresees them in decoding: gate_ahead (the next layer's gate), scoutgate:weights=FILE, "
        "gate_ahead+scoutgate:weights=FILE,share=0.75, or a predictor of expert_cache/predictors/",
    )
    placement_ahead: str = _option(
        "",
        "beside habits, who foresees a token's later layers for --decode_policy placement: "
        "as --prefetch_predictor; empty: nobody",
    )
    ram_budget: str = _option("", "size of a second tier in RAM, below the device; empty: none")
    io: str = _option("direct", "direct: reads past the page cache; buffered: through it")
    readers: int = _option(4, "threads that read experts")
    packed: str = _option("", "folder of `python -m offload.pack`: experts are read there, one read each")


@dataclass
class CacheSettings(EngineSettings):
    """How large the memory for experts is, who stays in it, and whether the router heeds it."""

    expert_budget: str = _option(
        "",
        "run with the experts in a cache of this size: slots a layer (8), percent (25%), or bytes (6GiB, "
        "buffers included); empty: all in memory. With --routing_strategy it is simulated, 25% by default, "
        "unless --reroute_live",
    )
    routing_strategy: str | None = _option(
        None, "also measure with re-routing by name:option=value,... of routing/strategies/, e.g. margin"
    )
    reroute_prefill: bool = _option(False, "re-route prompt tokens too, not only decoded ones")
    reroute_live: bool = _option(
        False,
        "re-route by what an offloading engine of --expert_budget truly holds, which runs the model then "
        "(--chat_mode, --input, --task_num); False: by what a simulated cache would hold",
    )


def log_folder(model: ModelSettings, run_name: str) -> str:
    """Where TensorBoard's files go: `tensorboard --logdir=./logs{model_key}` shows every run of a model."""
    return os.path.join(f"./logs{model.model_key}", run_name)
