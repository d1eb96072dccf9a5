"""Writes a checkpoint of a known model's shape with random weights, shard by shard in bounded memory.

    python benchmarks/random_checkpoint.py --shape olmoe-6l --output results/bench/olmoe-6l

Keys are those of a published checkpoint (one matrix an expert), with an index, a configuration and a small
tokenizer. The same shape and seed give the same bytes. A token's own embedding outweighs what the layers add
to it, so tokens drawn at random choose their experts almost at random: the worst case for a cache. (With
small embeddings the mean over the context would dominate, and all tokens would choose the same experts.)
"""

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
)

from dwellmoe.errors import UserError, run_command, unknown_name
from dwellmoe.files import replacing_path

DTYPE = torch.bfloat16
SHARD_BYTES = 2 << 30
ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "models" / "tiny-olmoe"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ENDLESS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # generation never stops early
OLMOE = {
    "model_type": "olmoe",
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}
DEEPSEEK_V2_LITE = {
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "topk_method": "greedy",
    "max_position_embeddings": 4096,
}
SHAPES = {
    "olmoe-4l": OLMOE | {"num_hidden_layers": 4},  # 3.8 GB
    "olmoe-6l": OLMOE | {"num_hidden_layers": 6},  # 5.5 GB
    "olmoe": OLMOE | {"num_hidden_layers": 16},  # 13.8 GB, OLMoE-1B-7B
    "deepseek-v2-lite": DEEPSEEK_V2_LITE,  # 31.4 GB
}


class Weight(NamedTuple):
    """One tensor of the file."""

    key: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE.itemsize


def config_of(shape: str) -> PretrainedConfig:
    """The configuration of a named shape. Raises UserError for an unknown name."""
    if shape not in SHAPES:
        raise unknown_name("shape", shape, SHAPES)
    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, **ENDLESS, dtype="bfloat16")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    config.architectures = [model_class.__name__]  # as published ones have
    return config


def weights_of(config: PretrainedConfig) -> list[Weight]:
    """Every tensor of a published checkpoint of this configuration; the experts are single matrices."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
    weights = []
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module.endswith(".experts"):
            weights += _single_experts(module, leaf, tuple(tensor.shape))
        else:
            weights.append(Weight(name, tuple(tensor.shape)))
    return weights


def _single_experts(module: str, leaf: str, shape: tuple[int, ...]) -> Iterator[Weight]:
    """`gate_up_proj` [E, 2I, D] and `down_proj` [E, D, I], one matrix an expert."""
    experts, rows, columns = shape
    names = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[leaf]
    for expert in range(experts):
        for name in names:
            yield Weight(f"{module}.{expert}.{name}.weight", (rows // len(names), columns))


def split_shards(weights: list[Weight], most_bytes: int) -> list[list[Weight]]:
    """Consecutive tensors, at most `most_bytes` a shard; the matrices of one expert stay together."""
    shards: list[list[Weight]] = [[]]
    filled = 0
    for group in _by_module(weights):
        size = sum(weight.size_bytes for weight in group)
        if filled and filled + size > most_bytes:
            shards.append([])
            filled = 0
        shards[-1] += group
        filled += size
    return shards


def _by_module(weights: list[Weight]) -> list[list[Weight]]:
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        module = weight.key.split(".experts.")
        expert = module[1].split(".")[0] if len(module) == 2 else ""
        groups.setdefault(f"{module[0]}.experts.{expert}" if expert else weight.key, []).append(weight)
    return list(groups.values())


def draw(weight: Weight, seed: int) -> torch.Tensor:
    """Norms are 1, biases 0, everything else normal, embeddings with deviation 1, others 0.02; depends on key
    and seed alone.
    """
    if "norm" in weight.key:
        return torch.ones(weight.shape, dtype=DTYPE)
    if weight.key.endswith("bias"):
        return torch.zeros(weight.shape, dtype=DTYPE)
    generator = torch.Generator().manual_seed(zlib.crc32(weight.key.encode(), seed))
    deviation = 1.0 if "embed_tokens" in weight.key else 0.02
    return torch.empty(weight.shape, dtype=DTYPE).normal_(0, deviation, generator=generator)


def write_checkpoint(shape: str, output: Path, seed: int = 0, shard_bytes: int = SHARD_BYTES) -> Path:
    """Writes the checkpoint to a folder beside `output`, then renames that; an `output` that exists is kept.

    Raises UserError for a disk without room for it.
    """
    if output.exists():
        return output
    config = config_of(shape)
    weights = weights_of(config)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_room(output.parent, sum(weight.size_bytes for weight in weights))
    with replacing_path(output) as beside:
        beside.mkdir()
        config.save_pretrained(beside)
        for name in TOKENIZER_FILES:
            shutil.copyfile(TOKENIZER / name, beside / name)
        _write_shards(split_shards(weights, shard_bytes), beside, seed)
    return output


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise UserError(f"'{folder}' has {free_bytes / 1e9:.1f} GB free, needed are {needed_bytes / 1e9:.1f}")


def _write_shards(shards: list[list[Weight]], folder: Path, seed: int) -> None:
    weight_map, total_bytes = {}, 0
    for i, shard in enumerate(tqdm(shards, unit="shard", disable=None)):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file({weight.key: draw(weight, seed) for weight in shard}, folder / name, {"format": "pt"})
        weight_map |= {weight.key: name for weight in shard}
        total_bytes += sum(weight.size_bytes for weight in shard)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="olmoe-6l", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--output", required=True, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_checkpoint(args.shape, Path(args.output), args.seed))


if __name__ == "__main__":
    run_command(main)
