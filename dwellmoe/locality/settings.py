"""Settings of fine-tuning for locality: what is trained, and the terms added to the loss."""

from collections.abc import Collection
from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.locality.threshold import needs_profile
from dwellmoe.options import COUNT, Settings, option, split_list

SCHEDULES = ("constant", "linear")
BALANCE_SCOPES = ("batch", "sequence", "global")
EXPERT_LORA = ("sparse", "peft")
MOST_WEIGHT = 1e6
"""The largest weight of a term of the loss."""
TRAIN_SCOPES = {
    "router": (["gate"], []),
    "router_attention": (["attention"], ["gate"]),
    "all": (["auto"], ["gate"]),
}
"""What is trained -> modules with LoRA, and modules trained in full."""


ROUTER = "gate"


def check_trained_modules(targets: Collection[str], extra: Collection[str]) -> None:
    """UserError for modules that cannot be trained in full, and where none gets LoRA."""
    if wrong := {*extra} - {ROUTER}:
        raise UserError(
            f"--lora_extra_modules {', '.join(sorted(wrong))}: only '{ROUTER}' can be trained in full"
        )
    if not targets:
        raise UserError(
            "--target_modules names nothing: a fully trained gate works only beside at least one LoRA target"
        )


@dataclass
class AdapterSettings(Settings):
    """What is trained, and where it is saved."""

    lora_save_path: str = option("./LoRA_models", "folder of checkpoints and of the final adapter")
    use_lora: bool = option(True, "train LoRA adapters; without it every weight of the model is trained")
    lora_rank: int = option(
        8,
        "rank of the adapters",
        least=1,
        most=8192,
    )
    lora_alpha: int = option(
        32,
        "scale of the adapters (rank-stabilised: alpha / sqrt(rank))",
        least=1,
        most=2**20,
    )
    target_modules: str = option(
        "auto", "comma list of modules that get LoRA; auto: attention, experts, gate"
    )
    lora_extra_modules: str = option("", "comma list of fully trained modules, e.g. gate")
    expert_lora: str = option(
        "sparse",
        "how LoRA of routed experts is computed: sparse (on the tokens that each expert serves) or peft (by "
        "PEFT, which adds it to the weights of all experts in every step: slower, and far more memory)",
        choices=EXPERT_LORA,
    )
    train_scope: str | None = option(
        None,
        "short for the two options above: router (LoRA on the gate alone), router_attention (gate in full, "
        "LoRA on attention), all (gate in full, LoRA on attention and experts)",
        choices=tuple(TRAIN_SCOPES),
    )
    daft_threshold: str = option(
        "1.0", "train layers whose expert consistency rate (ECR) is below this; 1.0: all, q50: the lower half"
    )
    ecr_profile: str | None = option(
        None, "file of each layer's ECR for --daft_threshold; default: measured on the training data"
    )
    profile_examples: int = option(
        64,
        "training examples that the profile is measured on",
        least=1,
        most=COUNT,
    )
    profile_only: bool = option(False, "measure and write the ECR profile, then stop")
    save_merged: bool = option(False, "also save the model with the adapter merged into it")
    overwrite_output: bool = option(False, "start over where the folder holds checkpoints of an earlier run")
    resume_anyway: bool = option(
        False, "resume a checkpoint though options, data or base model are not those it was trained with"
    )
    allow_other_base: bool = option(
        False, "use an adapter on another base model than the one it was trained on"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_scope is not None and (self.target_modules != "auto" or self.lora_extra_modules):
            raise UserError("give either --train_scope, or --target_modules and --lora_extra_modules")
        check_trained_modules(self.target_names, self.extra_names)
        needs_profile(self.daft_threshold)

    @property
    def target_names(self) -> list[str]:
        return TRAIN_SCOPES[self.train_scope][0] if self.train_scope else split_list(self.target_modules)

    @property
    def extra_names(self) -> list[str]:
        return TRAIN_SCOPES[self.train_scope][1] if self.train_scope else split_list(self.lora_extra_modules)


@dataclass
class LocalitySettings(Settings):
    """The terms that are added to the language-model loss."""

    consecutive_expert_loss_type: str = option(
        "cache_miss",
        "objective of locality: cache_miss, js, kl, l2, overlap, pool or reuse, with options as in "
        "reuse:window=4, or a sum as in cache_miss+0.5*pool",
    )
    consecutive_expert_loss_weight: float = option(
        0.5,
        "weight of that objective; 0 only measures locality",
        least=0,
        most=MOST_WEIGHT,
    )
    locality_schedule: str = option(
        "constant",
        f"weight over the course of training: {', '.join(SCHEDULES)} (falls to 0 at the end)",
        choices=SCHEDULES,
    )
    target_ecr: float | None = option(
        None,
        "ECR to reach on validation text: the locality weight adapts, starting from the given one",
        above=0,
        most=1,
    )
    target_hit_rate: str | None = option(
        None, "hit rate of a cache to reach in the same way: POLICY@CAPACITY=RATE, e.g. lru@25%=0.8"
    )
    quality_budget: float | None = option(
        None,
        "raise the locality weight until the validation loss rises by this (nats; 0.01: perplexity x 1.01)",
        above=0,
        most=100,
    )
    quality_reference: str | None = option(
        None,
        "folder of a finished run without locality: the rise is counted from its validation loss at the same "
        "step; default: from the loss of the model before training",
    )
    aux_loss_alpha: float = option(
        0.0,
        "weight of the load-balancing loss",
        least=0,
        most=MOST_WEIGHT,
    )
    balance_scope: str = option(
        "batch",
        "tokens over which experts are balanced: batch, sequence (a request), global (a step of all ranks)",
        choices=BALANCE_SCOPES,
    )
    distillation_weight: float = option(
        0.0,
        "weight of KL(model before training || trained) of the next token; costs a forward pass more a step",
        least=0,
        most=MOST_WEIGHT,
    )
    gate_kl_weight: float = option(
        0.0,
        "weight of KL(gate before training || trained gate); costs a forward pass more a step",
        least=0,
        most=MOST_WEIGHT,
    )
    locality_on_prompt: bool = option(
        True, "count pairs of prompt tokens in the objective, not only the answer's"
    )

    smooth_gates: float = option(
        0.0,
        "strength of refitting the gates before training, in closed form, so that their logits "
        "change less from token to token: 1 is a little, 4 much, 0 off",
        least=0,
        most=MOST_WEIGHT,
    )
    smooth_examples: int = option(
        256,
        "training examples that the gates are refitted on",
        least=1,
        most=COUNT,
    )
    train_rerouting: str | None = option(
        None,
        "train under a routing strategy, e.g. margin:loss=0.2: the answer's tokens prefer experts that a "
        "cache holds, as they will once deployed",
    )
    train_rerouting_cache: str = option(
        "lru@25%", "cache of each layer under --train_rerouting: POLICY@CAPACITY"
    )

    @property
    def has_target(self) -> bool:
        """Whether a target is given, for which the weight is adapted."""
        targets = (self.target_ecr, self.target_hit_rate, self.quality_budget)
        return any(target is not None for target in targets)

    @property
    def compares_with_reference(self) -> bool:
        """Whether training compares with the reference model."""
        return self.distillation_weight > 0 or self.gate_kl_weight > 0

    def __post_init__(self):
        super().__post_init__()
        if self.has_target:
            self._check_target_weight()
        if self.quality_reference is not None and self.quality_budget is None:
            raise UserError("--quality_reference needs --quality_budget, which is counted from it")

    def _check_target_weight(self):
        if not self.consecutive_expert_loss_weight > 0:
            raise UserError("a target needs a --consecutive_expert_loss_weight above 0 to start from")
        if self.locality_schedule != "constant":
            raise UserError("a target sets the locality weight itself: leave --locality_schedule out")
