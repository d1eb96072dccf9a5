"""The budget is a promise, checked from outside the process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_models import tiny_model

ROOT = Path(__file__).resolve().parent.parent.parent
CONSTANT_BYTES = 96 << 20  # machine code, the family's modules, work space of torch and readers
SCRIPT = """
import sys, torch
from dwellmoe.offload import EngineSettings, load_with_cache
print("imported", flush=True); sys.stdin.readline()
model, engine = load_with_cache(sys.argv[1], EngineSettings(expert_budget="12.5%", readers=2), torch.float32)
model.generate(torch.arange(3, 43)[None], max_new_tokens=24, do_sample=False)
print(engine.memory.total_bytes, flush=True); sys.stdin.readline()
"""

TRAINING_SCRIPT = """
import sys, torch
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_streamed_model
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.settings.model import ModelSettings
print("imported", flush=True); sys.stdin.readline()
model = load_streamed_model(ModelSettings(sys.argv[1], dtype="float32"), "34%")
tuned = add_elastic_lora(model, find_moe_layers(model), LoraShape(2, targets=("attention", "gate")))
tuned.train()
model.activation_checkpointing_enable()
model.disable_input_require_grads()
ids = torch.randint(3, 60, (4, 64))
for _ in range(3):
    tuned(ids, labels=ids, use_cache=False).loss.backward()
from dwellmoe.families.base import unwrap
experts = unwrap(tuned.get_submodule(find_moe_layers(tuned)[0].experts))
print(experts.expert_weights.stream.slot_bytes, flush=True); sys.stdin.readline()
"""


def peak_bytes(process: subprocess.Popen) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def go_on(process: subprocess.Popen) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def write_model(folder: Path) -> tuple[int, int]:
    """A checkpoint of 302 MB in experts: bytes of the experts, and of all other weights."""
    sizes = {
        "num_experts": 64,
        "num_local_experts": 64,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_experts_per_tok": 2,
    }
    model = tiny_model("olmoe", **sizes, eos_token_id=None)
    model.save_pretrained(folder)
    weights = {name: weight.nbytes for name, weight in model.named_parameters()}
    expert_bytes = sum(size for name, size in weights.items() if ".experts." in name)
    return expert_bytes, sum(weights.values()) - expert_bytes


def run_script(script: str, folder: Path) -> tuple[int, int]:
    """Bytes that a script's experts may take, and that the process took at most."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "imported\n"
        before = peak_bytes(process)
        expert_memory_bytes = json.loads(go_on(process))
        taken = peak_bytes(process) - before
        go_on(process)
    return expert_memory_bytes, taken


@pytest.mark.slow
def test_peak_memory_is_resident_weights_budget_and_a_constant(tmp_path):
    """Run in an eighth of the memory of all experts."""
    expert_bytes, resident_bytes = write_model(tmp_path)
    expert_memory_bytes, taken = run_script(SCRIPT, tmp_path)
    cache_bytes = 2 * 3 * 64 * 256 * torch.float32.itemsize
    assert expert_memory_bytes < 0.2 * expert_bytes
    assert taken <= resident_bytes + expert_memory_bytes + cache_bytes + CONSTANT_BYTES
    assert taken < expert_bytes / 2


@pytest.mark.slow
def test_training_takes_the_budget_its_activations_and_a_constant(tmp_path):
    """Trained in a third of the memory of all experts; the activations of such a batch are small."""
    expert_bytes, resident_bytes = write_model(tmp_path)
    expert_memory_bytes, taken = run_script(TRAINING_SCRIPT, tmp_path)
    assert expert_memory_bytes < 0.35 * expert_bytes
    assert taken <= resident_bytes + expert_memory_bytes + CONSTANT_BYTES
    assert taken < 0.7 * expert_bytes
