"""A tiny model with two adapters and a data set of its own on disk, for whole runs."""

import random
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from tests.data.stand_ins import WORDS, word_tokenizer, write_task
from tests.tiny_models import tiny_model

NOT_COMPARED = {"measured_speed": None, "made": None, "engine": None}
"""Parts of a report that hold times, which two runs never share."""
CHOICE_TASK = """
prompt = "{question}\\n{options}\\nw1"
answer = " {choice}"
fields = ["question", "choices", "gold"]
form = "choice_text"
metric = "accuracy"
[[source]]
kind = "file"
files = { train = "a.jsonl", validation = "b.jsonl", test = "c.jsonl" }
"""


def make_workspace(folder: Path, requests: int = 7) -> Path:
    """`model/`, `control/`, `tuned/checkpoint-10/` and `task/task.toml` in `folder`."""
    model = tiny_model("olmoe", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=2)
    model.save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(str(folder / "model"))
    for seed, name in enumerate(("control", "tuned/checkpoint-10")):
        make_adapter(folder / name, seed)
    (folder / "task").mkdir()
    rows = [make_row(number) for number in range(requests + 4)]
    write_task(folder / "task", CHOICE_TASK, a=rows[:2], b=rows[2:4], c=rows[4:])
    return folder


def make_adapter(folder: Path, seed: int) -> None:
    """A random adapter on the attention of the workspace's model."""
    model = tiny_model("olmoe", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=2)
    torch.manual_seed(seed)
    settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(folder))


def make_row(number: int) -> dict:
    """A question of 3 to 20 words with three answers."""
    draw = random.Random(number)
    words = [f"w{draw.randrange(100)}" for _ in range(3 + number * 5 % 18)]
    choices = [" ".join(f"w{draw.randrange(100)}" for _ in range(2 + i)) for i in range(3)]
    return {"question": " ".join(words), "choices": choices, "gold": number % 3}


def options(folder: Path, **changes) -> list[str]:
    """A command line that evaluates the workspace quickly."""
    settings = {
        "model_name": folder / "model",
        "dataset_name": folder / "task" / "task.toml",
        "lora_save_path": folder / "tuned" / "checkpoint-10",
        "control_path": folder / "control",
        "results_dir": folder / "results",
        "eval_batch_size": 2,
        "generate_limit": 3,
        "max_new_tokens": 6,
        "max_words_len": 64,
    } | changes
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
