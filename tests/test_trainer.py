"""The loss that is trained, the gradient it leaves, and what is logged."""

from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from config import TrainSettings
from dwellmoe.data.collate import PaddingCollator
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.objectives import objective_names
from dwellmoe.locality.settings import LocalitySettings
from tests.tiny_models import tiny_model
from trainer import LocalityTrainer

pytestmark = pytest.mark.slow

FAMILIES = ["olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "mixtral", "gpt_oss", "deepseek"]


def rows(count=8, length=12, seed=0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        ids = torch.randint(3, 60, (length + i % 3,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:]})
    return made


def settings(folder, **options):
    defaults = {
        "output_dir": str(folder),
        "report_to": "none",
        "logging_steps": 1,
        "eval_steps": 2,
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "per_device_train_batch_size": 2,
        "disable_tqdm": True,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "dataloader_pin_memory": False,
    }
    return TrainSettings(**(defaults | options))


def trainer_of(folder, model, locality=None, **options):
    locality = locality or LocalitySettings(consecutive_expert_loss_weight=1.0, aux_loss_alpha=0.01)
    return LocalityTrainer(
        model,
        settings(folder, **options),
        train_dataset=rows(),
        eval_dataset=rows(4, seed=1),
        data_collator=PaddingCollator(0),
        locality=locality,
    )


def gate_gradient(folder, model, **locality) -> Any:
    """Gradient of the first gate after one loss."""
    trainer = trainer_of(folder, model, LocalitySettings(**locality))
    model.train()
    batch = PaddingCollator(0)(rows(2))
    trainer.current_gradient_accumulation_steps = 1
    loss: Any = trainer.compute_loss(model, batch)
    loss.backward()
    gate = model.get_submodule(trainer.moe_layers[0].router)
    return next(parameter.grad for parameter in gate.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_reaches_the_gate_with_checkpointing_on(family, tmp_path):
    gradients = {}
    for checkpointing in (False, True):
        for weight in (0.0, 5.0):
            model = tiny_model(family)
            if checkpointing:
                model.activation_checkpointing_enable({"use_reentrant": False})
            gradients[checkpointing, weight] = gate_gradient(
                tmp_path, model, consecutive_expert_loss_weight=weight
            )
    assert not torch.allclose(gradients[False, 0.0], gradients[False, 5.0], rtol=1e-3), "no locality gradient"
    torch.testing.assert_close(gradients[True, 5.0], gradients[False, 5.0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("objective", [*objective_names(), "cache_miss+0.5*pool"])
def test_every_objective_moves_the_gate(objective, tmp_path):
    off, on = (
        gate_gradient(
            tmp_path,
            tiny_model("olmoe"),
            consecutive_expert_loss_type=objective,
            consecutive_expert_loss_weight=weight,
        )
        for weight in (0.0, 5.0)
    )
    assert not torch.allclose(off, on, rtol=1e-3)


def test_weight_zero_trains_exactly_as_the_plain_trainer(tmp_path):
    losses = []
    for kind in ("plain", "ours"):
        torch.manual_seed(0)
        model = tiny_model("olmoe")
        if kind == "ours":
            off = LocalitySettings(consecutive_expert_loss_weight=0.0, aux_loss_alpha=0.0)
            trainer = trainer_of(tmp_path / kind, model, off)
        else:
            trainer = Trainer(
                model,
                settings(tmp_path / kind, eval_strategy="no"),
                train_dataset=rows(),
                data_collator=without_segments,
            )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def without_segments(batch):
    made = PaddingCollator(0)(batch)
    del made["segment_ids"]
    return made


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    """Micro-batches of equal pair counts: the locality term must weigh as in one large batch."""
    weights = []
    for size, parts in ((4, 1), (1, 4)):
        torch.manual_seed(0)
        model = tiny_model("olmoe")
        data = [row for row in rows(12) if len(row["input_ids"]) == 12][:4]
        trainer = LocalityTrainer(
            model,
            settings(
                tmp_path / str(size),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=parts,
                max_steps=1,
                optim="sgd",
                eval_strategy="no",
            ),
            train_dataset=data,
            data_collator=PaddingCollator(0),
            locality=LocalitySettings(consecutive_expert_loss_weight=3.0),
        )
        trainer.train()
        router: Any = model.get_submodule(trainer.moe_layers[0].router)
        weights.append(router.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_what_is_logged(tmp_path):
    trainer = trainer_of(tmp_path, tiny_model("olmoe"))
    trainer.train()
    history = trainer.state.log_history
    train = next(entry for entry in history if "loss" in entry)
    for name in ("lm_loss", "locality_loss", "balance_loss", "ecr", "hit_rate_lru_25"):
        assert name in train, name
        assert any(f"eval_{name}" in entry for entry in history), f"eval_{name}"
    assert train["loss"] == pytest.approx(
        train["lm_loss"] + train["locality_loss"] + 0.01 * train["balance_loss"], rel=1e-3
    )
    assert 0 <= train["ecr"] <= 1


def test_the_controller_adapts_the_weight_until_the_target_is_met(tmp_path):
    locality = LocalitySettings(consecutive_expert_loss_weight=0.1, target_ecr=0.6)
    options = {"max_steps": 60, "eval_steps": 15, "learning_rate": 1e-2}
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), locality, **options)
    trainer.eval_dataset = trainer.train_dataset  # eight random rows teach nothing about others
    trainer.train()
    weights = [entry["locality_weight"] for entry in trainer.state.log_history if "loss" in entry]
    assert max(weights) > 0.3
    closest: Any = trainer.closest_to_target
    assert closest.result().reached == pytest.approx(0.6, rel=0.15)


def test_a_budget_is_counted_from_the_reference_model(tmp_path):
    locality = LocalitySettings(consecutive_expert_loss_weight=0.1, quality_budget=0.5)
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), locality, max_steps=4, eval_on_start=True)
    trainer.train()
    closest: Any = trainer.closest_to_target
    losses = [entry["eval_lm_loss"] for entry in trainer.state.log_history if "eval_lm_loss" in entry]
    assert closest.result().reached == pytest.approx(losses[-1] - losses[0])
    assert closest.verdict().startswith("target rise of the validation loss 0.5 met: reached ")


def collapse(model):
    """Every choice of the routers becomes a tie, which falls alike each time."""
    for layer in find_moe_layers(model):
        for name, weight in model.get_submodule(layer.router).named_parameters():
            if "original_module" not in name:
                weight.data.zero_()


def test_a_router_that_training_made_collapse_ends_the_run(tmp_path):
    model = tiny_model("olmoe")
    model = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2, extra=("gate",)))
    collapse(model)
    with pytest.raises(
        UserError, match=r"router of layer 0 has collapsed: 2 of 8 experts .* before training [4-8];"
    ):
        trainer_of(tmp_path, model, learning_rate=0.0).train()


@pytest.mark.parametrize("lora", [True, False])
def test_a_router_that_had_collapsed_before_is_told_and_trained(tmp_path, capsys, monkeypatch, lora):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    model = tiny_model("olmoe")
    collapse(model)
    if lora:
        model = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
    trainer = trainer_of(tmp_path, model, learning_rate=0.0, eval_on_start=not lora)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    assert "layer 0 had collapsed before training: 2 of 8" in capsys.readouterr().err


def test_distances_pull_back_to_the_reference_model(tmp_path):
    """At the start there is no distance; with a large weight training stays closer than with a small one."""
    gate_kl = []
    for weight in (1e-9, 50.0):
        torch.manual_seed(0)
        model = tiny_model("olmoe")
        model = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2, extra=("gate",)))
        locality = LocalitySettings(
            consecutive_expert_loss_weight=20.0, distillation_weight=weight, gate_kl_weight=weight
        )
        trainer = trainer_of(tmp_path, model, locality, max_steps=6, eval_strategy="no", learning_rate=1e-2)
        trainer.train()
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert logged[0]["distillation_loss"] == pytest.approx(0, abs=1e-5)
        assert logged[-1]["distillation_loss"] > 1e-6
        gate_kl.append(logged[-1]["gate_kl_loss"])
    assert gate_kl[1] < 0.7 * gate_kl[0]


def test_padding_changes_nothing(tmp_path):
    """Random routing read 0.46 behind forty pads in the seed; here pads are no tokens."""
    trainer = trainer_of(tmp_path, tiny_model("olmoe"))
    model = trainer.model.eval()
    terms = []
    for multiple in (1, 64):
        batch = PaddingCollator(0, multiple)(rows(3))
        with torch.no_grad():
            trainer.compute_loss(model, batch)
        terms.append(trainer._summary(training=False))
    for name, value in terms[0].items():
        assert value == pytest.approx(terms[1][name], rel=1e-4), name


def test_only_trained_layers_enter_the_objective(tmp_path):
    model = tiny_model("olmoe")
    layers = find_moe_layers(model)
    wrapped = add_elastic_lora(model, layers[-1:], LoraShape(rank=2, extra=("gate",)))
    trainer = LocalityTrainer(
        wrapped,
        settings(tmp_path),
        train_dataset=rows(),
        eval_dataset=rows(2),
        data_collator=PaddingCollator(0),
        locality=LocalitySettings(consecutive_expert_loss_weight=1.0),
        trained_layers=layers[-1:],
    )
    before = {name: weight.detach().clone() for name, weight in wrapped.named_parameters()}
    trainer.train()
    changed = {name for name, weight in wrapped.named_parameters() if not weight.equal(before[name])}
    assert changed and all(f"layers.{layers[-1].layer_id}." in name for name in changed)


def test_the_linear_schedule_falls_to_zero(tmp_path):
    locality = LocalitySettings(consecutive_expert_loss_weight=1.0, locality_schedule="linear")
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), locality, max_steps=4)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    added = [(entry["loss"] - entry["lm_loss"]) / entry["locality_loss"] for entry in logged]
    assert added == pytest.approx([1.0, 0.75, 0.5, 0.25], abs=2e-3)


def test_a_mean_over_no_tokens_is_no_number_of_the_log(tmp_path):
    trainer: Any = trainer_of(tmp_path, tiny_model("olmoe"), per_device_eval_batch_size=1)
    for row in list(trainer.eval_dataset)[:3]:
        row["labels"] = [-100] * len(row["labels"])
    metrics = trainer.evaluate()
    only = trainer.eval_dataset[3]
    trainer.eval_dataset = [only]
    assert metrics["eval_lm_loss"] == pytest.approx(trainer.evaluate()["eval_lm_loss"])
    trainer.eval_dataset = [only | {"labels": [-100] * len(only["labels"])}]
    assert "eval_lm_loss" not in trainer.evaluate()


def test_the_best_checkpoint_is_the_best_of_the_whole_ones(tmp_path, capsys):
    each_step = {"max_steps": 3, "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), load_best_model_at_end=True, **each_step)
    trainer.train()
    scores = {e["step"]: e["eval_lm_loss"] for e in trainer.state.log_history if "eval_lm_loss" in e}
    ranked = sorted(scores, key=lambda step: scores[step])
    for best, after in zip(ranked, [*ranked[1:], None], strict=True):
        assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
        weights = tmp_path / f"checkpoint-{best}" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4])
        trainer._load_best_model()
        assert f"checkpoint-{best}', the best checkpoint, is left out: model" in capsys.readouterr().err
        assert (trainer.state.best_model_checkpoint is None) == (after is None)


@pytest.mark.parametrize("lora", [True, False])
def test_weights_that_become_nan_end_the_run_and_are_not_saved(tmp_path, lora):
    """The checkpoint before stays the last one, and is named."""
    model = tiny_model("olmoe")
    if lora:
        model = add_elastic_lora(model, find_moe_layers(model), LoraShape(2))
    trainer = trainer_of(tmp_path, model, save_strategy="steps", save_steps=1, max_steps=4)

    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                weight = next(weight for weight in model.parameters() if weight.requires_grad)
                weight.data.view(-1)[0] = float("nan")

    trainer.add_callback(Spoil())
    with pytest.raises(UserError, match=r"after step 2: .*its weight .*checkpoints: checkpoint-1$"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_a_loss_that_is_nan_by_itself_ends_the_run(tmp_path, monkeypatch):
    trainer: Any = trainer_of(tmp_path, tiny_model("olmoe"))
    monkeypatch.setattr(trainer, "_weighted", lambda terms: torch.tensor(float("nan")))
    with pytest.raises(UserError, match="the loss is NaN, though the model's weights are finite"):
        trainer.train()


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("--lr_scheduler_type", {"lr_scheduler_kwargs": {"no_such_entry": 1}}),
        ("--optim", {"optim": "galore_adamw", "optim_target_modules": ["gate"]}),
        ("--optim", {"optim": "adamw_torch", "optim_args": "no_such_entry"}),
    ],
)
def test_options_that_torch_refuses_are_named(tmp_path, option, wrong):
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), **wrong)
    with pytest.raises(UserError, match=f"^{option}, or an option that goes with it"):
        trainer.train()


def resumable(tmp_path, **options):
    """A trainer of three steps whose first has a checkpoint."""
    once = {"save_strategy": "steps", "save_steps": 1}
    trainer_of(tmp_path, tiny_model("olmoe"), max_steps=1, **once, **options).train()
    return trainer_of(tmp_path, tiny_model("olmoe"), max_steps=3, **once), tmp_path / "checkpoint-1"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
@pytest.mark.parametrize("content", [b"garbage", None])
def test_files_of_another_kind_in_a_checkpoint_are_named(tmp_path, name, content):
    trainer, checkpoint = resumable(tmp_path)
    if content is None:
        torch.save({"state": {}, "param_groups": []}, checkpoint / name)
    else:
        (checkpoint / name).write_bytes(content)
    if (name, content) != ("scheduler.pt", None):  # any table is taken
        with pytest.raises(UserError, match="checkpoint-1"):
            trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_the_model_alone_begins_the_schedule_anew_and_says_so(tmp_path, capsys):
    trainer, checkpoint = resumable(tmp_path, save_only_model=True)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert "holds no optimizer.pt" in capsys.readouterr().err


def test_what_a_killed_save_left_does_not_stay_in_a_checkpoint(tmp_path):
    torn = tmp_path / "checkpoint-2" / "README.md"
    torn.parent.mkdir()
    torn.write_bytes(b"\xff")
    trainer_of(tmp_path, tiny_model("olmoe"), save_strategy="steps", save_steps=1).train()
    assert not torn.exists() and (torn.parent / "trainer_state.json").exists()
