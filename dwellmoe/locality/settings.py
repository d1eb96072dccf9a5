"""Settings of fine-tuning for locality: what is trained, and the terms added to the loss."""

from dataclasses import dataclass

from dwellmoe.errors import UserError
from dwellmoe.options import check_at_least, check_choice, option, split_list

SCHEDULES = ("constant", "linear")
BALANCE_SCOPES = ("batch", "sequence", "global")
TRAIN_SCOPES = {
    "router": (["gate"], []),
    "router_attention": (["attention"], ["gate"]),
    "all": (["auto"], ["gate"]),
}
"""What is trained -> modules with LoRA, and modules trained in full."""


@dataclass
class AdapterSettings:
    """What is trained, and where it is saved."""

    lora_save_path: str = option("./LoRA_models", "folder of checkpoints and of the final adapter")
    use_lora: bool = option(True, "train LoRA adapters; without it every weight of the model is trained")
    lora_rank: int = option(8, "rank of the adapters")
    lora_alpha: int = option(32, "scale of the adapters (rank-stabilised: alpha / sqrt(rank))")
    target_modules: str = option(
        "auto", "comma list of modules that get LoRA; auto: attention, experts, gate"
    )
    lora_extra_modules: str = option("", "comma list of fully trained modules, e.g. gate")
    train_scope: str | None = option(
        None,
        "short for the two options above: router (LoRA on the gate alone), router_attention (gate in full, "
        "LoRA on attention), all (gate in full, LoRA on attention and experts)",
    )
    daft_threshold: str = option(
        "1.0", "train the layers whose ECR is below; 1.0 is every layer, q50 the lower half"
    )
    ecr_profile: str | None = option(None, "profile to select by; default: measured on the training data")
    profile_examples: int = option(64, "training examples that the profile is measured on")
    profile_only: bool = option(False, "measure and write the ECR profile, then stop")
    save_merged: bool = option(False, "also save the model with the adapter merged into it")
    overwrite_output: bool = option(False, "start over where the folder holds checkpoints of an earlier run")

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

    consecutive_expert_loss_type: str = option(
        "cache_miss",
        "objective of locality: a file of locality/objectives/, options as in reuse:window=4",
    )
    consecutive_expert_loss_weight: float = option(
        0.5, "its weight; 0 measures but does not train for locality"
    )
    locality_schedule: str = option(
        "constant", f"course of that weight over training: {', '.join(SCHEDULES)} (falls to 0 at the end)"
    )
    target_ecr: float | None = option(
        None,
        "adapt the locality weight until the validation text has this ECR; the weight given is the first",
    )
    target_hit_rate: str | None = option(
        None, "the same for the hit rate of a cache, e.g. lru@25%=0.8 (POLICY@CAPACITY=RATE)"
    )
    quality_budget: float | None = option(
        None,
        "as much locality as a rise of the validation loss by this (nats; 0.01 is perplexity x 1.01) buys",
    )
    quality_reference: str | None = option(
        None,
        "folder of a control run whose validation loss, step by step, the rise is counted from; default: the "
        "loss of the reference model",
    )
    aux_loss_alpha: float = option(0.0, "weight of the load-balancing loss")
    balance_scope: str = option(
        "batch", "what must be balanced: a batch, each request (sequence), or the step of all ranks (global)"
    )
    distillation_weight: float = option(
        0.0, "weight of KL(reference model || trained) on the next token; costs another forward pass a step"
    )
    gate_kl_weight: float = option(
        0.0, "weight of KL(reference gate || trained gate); costs another forward pass a step"
    )
    locality_on_prompt: bool = option(
        True, "count pairs of prompt tokens in the objective, not only the answer's"
    )

    smooth_gates: float = option(
        0.0,
        "before training, refit the gates in closed form so that their logits change less from token to "
        "token; by how much: 1 a little, 4 much; 0 leaves them",
    )
    smooth_examples: int = option(256, "training examples that the gates are refitted on")
    train_rerouting: str | None = option(
        None,
        "train under a routing strategy of routing/strategies/, e.g. margin:loss=0.2: answers choose by "
        "what a cache holds, as they will once deployed",
    )
    train_rerouting_cache: str = option("lru@25%", "that cache: POLICY@CAPACITY, a cache a layer")

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
        check_at_least("consecutive_expert_loss_weight", self.consecutive_expert_loss_weight, 0)
        for name in ("aux_loss_alpha", "distillation_weight", "gate_kl_weight", "smooth_gates"):
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
