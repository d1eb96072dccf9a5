"""Experts streamed from the checkpoint while training: a step over its floor, and the memory of the process.

A random checkpoint of a known model's shape is written to a folder, which is removed afterwards unless it was
there. LoRA of rank 8 on routers and attention trains on 4 x 512 tokens a step in bfloat16, with the locality
loss, AdamW, and activations by a checkpoint a layer. The floor is the larger of

- bytes that the process read from disk, by the kernel's count, over the bandwidth of as many readers
- the arithmetic of the same step with all experts in memory, measured with 2 and 4 layers and scaled to all

Memory is the largest resident set of the process since it began, seen from outside.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent.parent), str(FOLDER.parent)]

import torch
from disk_bandwidth import read_bandwidth
from random_checkpoint import SHAPES, config_of, write_checkpoint
from scale.locality_step import locality_step
from scale.step_process import StepProcess, seconds_in_turns, serve
from transformers import AutoModelForCausalLM

from dwellmoe.experts import use_expert_lora
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_streamed_model, quiet
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings

ROWS, TOKENS, RANK = 4, 512, 8
TARGETS = ("attention", "gate")
FEW, MORE = 2, 4
"""Layers of the models in memory, from whose steps that of all layers is extrapolated."""
BANDWIDTH_SECONDS = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this section."""
    parser.add_argument("--streaming_shape", default="olmoe", choices=SHAPES, help="model to stream")
    parser.add_argument("--streaming_budget", default="1500MB", help="memory for experts (--expert_budget)")
    parser.add_argument("--streaming_scratch", help="folder for the checkpoint; default: the system's own")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this section."""
    with TemporaryDirectory(prefix="dwellmoe-streaming-", dir=args.streaming_scratch) as scratch:
        folder = write_checkpoint(args.streaming_shape, Path(scratch) / args.streaming_shape)
        found = _streamed(folder, args)
    layers = SHAPES[args.streaming_shape]["num_hidden_layers"]
    resident = _resident_seconds(args, layers)
    floor_seconds = max(found["disk_seconds"], resident[str(layers)])
    return {
        "streamed_step_over_floor": found["step_seconds"] / floor_seconds,
        "streamed_peak_bytes": found["peak_bytes"],
        "streaming": found | {"resident_seconds_by_layers": resident, "floor_seconds": floor_seconds},
    }


def _streamed(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    files = sorted(folder.glob("*.safetensors"))
    expert_bytes = _expert_bytes(args.streaming_shape)
    seconds, read_bytes, bandwidths = [], [], []
    with StepProcess(__file__, "streamed", str(folder), args.streaming_budget) as process:
        for i in range(args.warm_up + args.rounds):
            bandwidths.append(
                read_bandwidth(files, expert_bytes, EngineSettings.readers, BANDWIDTH_SECONDS, seed=i)
            )
            before = process.kernel_count("io", "read_bytes")
            taken = process.step()["seconds"]
            if i >= args.warm_up:
                seconds.append(taken)
                read_bytes.append(process.kernel_count("io", "read_bytes") - before)
        peak_bytes = process.kernel_count("status", "VmHWM") * 1024
    bandwidth = statistics.median(bandwidths)
    return {
        "checkpoint_bytes": sum(path.stat().st_size for path in files),
        "peak_bytes": peak_bytes,
        "step_seconds": statistics.median(seconds),
        "read_bytes_a_step": statistics.median(read_bytes),
        "disk_bytes_per_second": bandwidth,
        "disk_seconds": statistics.median(read_bytes) / bandwidth,
    }


def _expert_bytes(shape: str) -> int:
    config: Any = config_of(shape)
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return 3 * config.hidden_size * width * 2


def _resident_seconds(args: argparse.Namespace, layers: int) -> dict[str, float]:
    """Seconds of a step with all experts in memory, by the number of layers."""
    with ExitStack() as stack:
        processes = {
            str(count): stack.enter_context(
                StepProcess(__file__, "resident", args.streaming_shape, str(count))
            )
            for count in (FEW, MORE)
        }
        found = seconds_in_turns(processes, args.rounds, args.warm_up)
    a_layer = (found[str(MORE)] - found[str(FEW)]) / (MORE - FEW)
    return found | {str(layers): found[str(MORE)] + a_layer * (layers - MORE)}


def streamed_step(folder: str, budget: str) -> Callable[[], object]:
    return _training_step(load_streamed_model(ModelSettings(folder, dtype="bfloat16"), budget))


def resident_step(shape: str, layers: str) -> Callable[[], object]:
    torch.manual_seed(0)
    config: Any = config_of(shape)
    config.num_hidden_layers = int(layers)
    config.layer_types = None
    return _training_step(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16))


def _training_step(plain: Any) -> Callable[[], object]:
    plain.activation_checkpointing_enable({"use_reentrant": False})
    tuned = add_elastic_lora(plain, find_moe_layers(plain), LoraShape(RANK, targets=TARGETS))
    plain.disable_input_require_grads()
    use_expert_lora(tuned)
    return locality_step(tuned.train(), ROWS, TOKENS, plain.config.vocab_size)


if __name__ == "__main__":
    quiet()
    kind, first, second = sys.argv[1:]
    serve(
        lambda: (streamed_step if kind == "streamed" else resident_step)(first, second), loading_counts=True
    )
