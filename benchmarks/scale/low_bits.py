"""Frozen experts in low bits: their memory, the peak while they are loaded, the loss and the time of steps.

Memory and time: OLMoE's layer shape in bfloat16, two layers, by the kernel's count, each form in a process of
its own. Loss: `models/tiny-olmoe`, the same 20 steps on the text of docs/ for every form; `bf16` is the plain
model.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
sys.path[:0] = [str(ROOT), str(FOLDER.parent)]

import torch
from scale.olmoe_layers import VOCABULARY, make_model
from scale.step_process import GIVE_BACK, StepProcess, seconds_in_turns, serve

from dwellmoe.experts import use_expert_lora
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.loading import load_model, load_tokenizer, quiet
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.settings.model import ModelSettings

TINY = ROOT / "models" / "tiny-olmoe"
PLAIN, FORMATS = "bf16", ("int8", "nf4", "int4")
RANK, LOSS_STEPS, LAST = 8, 20, 5
ROWS, TOKENS = 4, 512
LOSS_ROWS, LOSS_TOKENS = 4, 256


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this section."""
    with TemporaryDirectory(prefix="dwellmoe-low-bits-") as folder:
        make_model().save_pretrained(folder)
        loaded = {name: _loaded(folder, name) for name in FORMATS}
        with ExitStack() as stack:
            processes = {
                name: stack.enter_context(StepProcess(__file__, "train", folder, name))
                for name in (PLAIN, *FORMATS)
            }
            seconds = seconds_in_turns(processes, args.rounds, args.warm_up)
    losses = {name: _losses(name) for name in (PLAIN, *FORMATS)}
    return {
        **{f"{name}_memory_vs_bf16": found["resident"] / found["bf16"] for name, found in loaded.items()},
        **{f"{name}_step_vs_bf16": seconds[name] / seconds[PLAIN] for name in FORMATS},
        "low_bit_loading": loaded,
        "low_bit_step_seconds": seconds,
        "low_bit_losses": losses,
        "low_bit_loss_of_last_steps": {name: sum(found[-LAST:]) / LAST for name, found in losses.items()},
    }


def _model(folder: str | Path, name: str) -> Any:
    quiet()
    expert_format = None if name == PLAIN else name
    return load_model(ModelSettings(str(folder), dtype="bfloat16", expert_format=expert_format))


def _loaded(folder: str, name: str) -> dict[str, int]:
    """Bytes of a loaded model's experts, resident and in bfloat16, and the peak of loading above that."""
    command = [sys.executable, __file__, "load", folder, name]
    done = subprocess.run(command, env=os.environ | GIVE_BACK, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _print_loaded(folder: str, name: str) -> None:
    _model(TINY, name)  # libraries and compiled code do not count
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident set is counted from here
    model = _model(folder, name)
    after, peak = _status_bytes("VmRSS"), _status_bytes("VmHWM")
    others = sum(weight.nbytes for weight in model.parameters())
    in_bf16 = sum(2 * _numbers(model, layer) for layer in find_moe_layers(model))
    one = max(expert_bytes(model, layer) for layer in find_moe_layers(model))
    found = {"resident": after - before - others, "bf16": in_bf16, "peak_above_result": peak - after}
    print(json.dumps(found | {"one_expert": one}))


def _numbers(model: Any, layer: Any) -> int:
    experts = model.get_submodule(layer.experts)
    return sum(getattr(experts, name).numel() for name in ("gate_up_proj", "down_proj"))


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def _tuned(model: Any) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    tuned = add_elastic_lora(model, find_moe_layers(model), LoraShape(RANK))
    use_expert_lora(tuned)
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    return tuned.train(), torch.optim.AdamW(trained, 1e-3)


def _step(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def training_step(folder: str, name: str) -> Callable[[], object]:
    tuned, optimizer = _tuned(_model(folder, name))
    return lambda: _step(tuned, optimizer, torch.randint(VOCABULARY, (ROWS, TOKENS)))


def _losses(name: str) -> list[float]:
    """The loss of each of the steps on the text of docs/."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    tokens = load_tokenizer(ModelSettings(str(TINY)))(text)["input_ids"]
    size = LOSS_ROWS * LOSS_TOKENS
    batches = torch.tensor(tokens[: LOSS_STEPS * size]).view(-1, LOSS_ROWS, LOSS_TOKENS)
    tuned, optimizer = _tuned(_model(TINY, name))
    return [_step(tuned, optimizer, ids) for ids in batches]


if __name__ == "__main__":
    kind, folder, name = sys.argv[1:]
    if kind == "load":
        _print_loaded(folder, name)
    else:
        serve(lambda: training_step(folder, name))
