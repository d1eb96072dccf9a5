"""Settings of the Trainer that have a default of this project, and how those fit what a user gives."""

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass

from dwellmoe.errors import UserError, unknown_name
from dwellmoe.log import warn_once
from dwellmoe.options import COUNT, SEED, Settings, option, split_list
from dwellmoe.settings.library_names import REPORTERS, check_library_name

STRATEGIES = ("no", "steps", "epoch")
METRICS = {
    **dict.fromkeys(("lm_loss", "loss", "locality_loss", "balance_loss", "target_error"), False),
    **dict.fromkeys(("ecr", "hit_rate_lru_25", "hit_rate_target"), True),
}
"""What a validation measures -> whether higher is better; `eval_` may stand before a name."""
_MOST_EPOCHS = 1e6


@dataclass
class TrainerSettings(Settings):
    """How long and how fast it trains, and when it validates, saves and logs."""

    output_dir: str | None = option(None, "folder of the run; set from --lora_save_path")
    per_device_train_batch_size: int = option(
        1, "requests a step and device", aliases=["--batch_size"], least=1, most=65_536
    )
    gradient_accumulation_steps: int = option(
        1, "batches whose gradients make one step", least=1, most=65_536
    )
    learning_rate: float = option(1e-3, "highest learning rate", least=0, most=100)
    num_train_epochs: float = option(1.0, "passes over the training data", above=0, most=_MOST_EPOCHS)
    max_steps: int = option(
        -1,
        "steps to train, whatever the epochs; -1: as --num_train_epochs says",
        least=1,
        most=COUNT,
        also=(-1,),
    )
    logging_steps: float = option(10, "steps between log entries", above=0, most=COUNT)
    eval_strategy: str = option("steps", f"when to validate: {', '.join(STRATEGIES)}", choices=STRATEGIES)
    eval_steps: float | None = option(500, "steps between validations", above=0, most=COUNT)
    save_strategy: str = option(
        "steps",
        f"when to save a checkpoint: {', '.join(STRATEGIES)}, best (when a validation is the best so far)",
        choices=(*STRATEGIES, "best"),
    )
    save_steps: float = option(500, "steps between checkpoints", above=0, most=COUNT)
    load_best_model_at_end: bool = option(True, "save the adapter of the best checkpoint, not of the last")
    metric_for_best_model: str | None = option(
        "eval_lm_loss", f"validation metric that the best checkpoint is chosen by: {', '.join(METRICS)}"
    )
    greater_is_better: bool | None = option(
        None, "whether a higher value of that metric is better; default: as the metric has it"
    )
    report_to: str | list[str] | None = option(  # noqa: RUF009 - a field
        "tensorboard", "comma list of tools to log to, e.g. tensorboard, wandb; none"
    )
    remove_unused_columns: bool = option(False, "always False: the trainer needs every column")
    seed: int = option(42, "random seed", least=0, most=SEED)
    resume_from_checkpoint: str | None = option(
        None, "go on from this checkpoint of the run; auto: from its last complete one, if there is any"
    )

    def __post_init__(self):
        super().__post_init__()
        self._check_metric()
        given = split_list(self.report_to) if isinstance(self.report_to, str) else self.report_to or []
        for reporter in given:
            check_library_name("--report_to", reporter, REPORTERS, also=("all", "none"))
        for name in ("logging_steps", "eval_steps", "save_steps"):
            steps = getattr(self, name)
            if steps is not None and steps > 1 and steps != int(steps):
                raise UserError(
                    f"--{name} {steps}: above 1 it is a number of steps, and whole; below 1 a share of all"
                )

    def _check_metric(self) -> None:
        """UserError for a metric that no validation measures. Sets what is better, unless it is given."""
        if self.metric_for_best_model is None:
            return
        metric = self.metric_for_best_model.removeprefix("eval_")
        if metric not in METRICS:
            raise unknown_name("--metric_for_best_model", metric, METRICS)
        if self.greater_is_better is None:
            self.greater_is_better = METRICS[metric]


def fit_to_given(trainer: TrainerSettings, given: Collection[str]) -> TrainerSettings:
    """The settings with this project's defaults changed where they contradict the options that were given.

    The best checkpoint can be kept only where each checkpoint is validated: transformers demands it of
    options that the user may never have named. What is changed is said. UserError for given options that
    contradict one another.
    """
    if not trainer.load_best_model_at_end:
        return trainer
    changed = _validated_checkpoints(trainer, given)
    if changed.get("load_best_model_at_end") is False and "load_best_model_at_end" in given:
        steps = ("eval_strategy", "eval_steps", "save_strategy", "save_steps")
        raise UserError(
            "--load_best_model_at_end True needs a validation with each checkpoint, which "
            f"{_options(trainer, steps, given)} rules out"
        )
    if changed:
        why = "the adapter of the last step is saved, for not every checkpoint is validated"
        if "load_best_model_at_end" not in changed:
            why = "each checkpoint is validated, so that the best one can be kept"
        warn_once(f"note: {_options(trainer := dataclasses.replace(trainer, **changed), changed)}: {why}")
    return trainer


def _options(trainer: TrainerSettings, names: Collection[str], given: Collection[str] | None = None) -> str:
    listed = [name for name in names if given is None or name in given]
    return " ".join(f"--{name} {_plain(getattr(trainer, name))}" for name in listed)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _validated_checkpoints(trainer: TrainerSettings, given: Collection[str]) -> dict:
    """The settings to change so that each checkpoint is validated, or so that the last one counts."""
    last_counts = {"load_best_model_at_end": False}
    strategies = trainer.eval_strategy, trainer.save_strategy
    if "no" in strategies:
        return last_counts
    if trainer.save_strategy == "best":
        return {}
    chose_eval, chose_save = ({f"{kind}_strategy", f"{kind}_steps"} & {*given} for kind in ("eval", "save"))
    if trainer.eval_strategy != trainer.save_strategy:
        if chose_eval and chose_save:
            return last_counts
        if chose_eval:
            return {"save_strategy": trainer.eval_strategy}
        return {"eval_strategy": trainer.save_strategy}
    if trainer.eval_strategy == "epoch" or _divides(trainer.eval_steps, trainer.save_steps):
        return {}
    if "eval_steps" not in given:
        return {"eval_steps": trainer.save_steps}
    if "save_steps" not in given:
        return {"save_steps": _multiple_of(trainer.eval_steps, trainer.save_steps)}
    return last_counts


def _divides(eval_steps: float | None, save_steps: float) -> bool:
    """Whether each checkpoint is validated, by transformers' rule; below 1 steps are a share of all."""
    eval_steps = eval_steps or save_steps
    if (eval_steps < 1) != (save_steps < 1):
        return False
    scale = 1 if eval_steps >= 1 else 1_000_000
    return (save_steps * scale) % (eval_steps * scale) == 0


def _multiple_of(eval_steps: float | None, save_steps: float) -> float:
    """The smallest multiple of the steps between validations that is no less than the default."""
    eval_steps = eval_steps or save_steps
    return math.ceil(save_steps / eval_steps) * eval_steps if eval_steps >= 1 else eval_steps
