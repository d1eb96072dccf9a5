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


def peak_bytes(process: subprocess.Popen) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def go_on(process: subprocess.Popen) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.slow
def test_peak_memory_is_resident_weights_budget_and_a_constant(tmp_path):
    """A checkpoint of 302 MB in experts, run in an eighth of that."""
    sizes = {
        "num_experts": 64,
        "num_local_experts": 64,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_experts_per_tok": 2,
    }
    model = tiny_model("olmoe", **sizes, eos_token_id=None)
    model.save_pretrained(tmp_path)
    weights = {name: weight.nbytes for name, weight in model.named_parameters()}
    expert_bytes = sum(size for name, size in weights.items() if ".experts." in name)
    resident_bytes = sum(weights.values()) - expert_bytes
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
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
    cache_bytes = 2 * 3 * 64 * 256 * torch.float32.itemsize
    assert expert_memory_bytes < 0.2 * expert_bytes
    assert taken <= resident_bytes + expert_memory_bytes + cache_bytes + CONSTANT_BYTES
    assert taken < expert_bytes / 2
