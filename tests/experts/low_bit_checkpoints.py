"""Tiny checkpoints with the byte layout in which GPT-OSS (MXFP4) and DeepSeek-V3 or Qwen3 (block FP8) are
published.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.session_folder import session_folder
from tests.tiny_models import tiny_model

FP8_BLOCK = (16, 16)
WIDE = {"hidden_size": 64, "intermediate_size": 32}


@cache
def mxfp4_checkpoint(**sizes: int) -> Path:
    """GPT-OSS: blocks and scales for all experts of a layer, biases and the rest in bfloat16."""
    folder = session_folder("mxfp4")
    model = _same_model("gpt_oss", **WIDE, **sizes)
    model.to(torch.bfloat16).save_pretrained(folder)
    draw = torch.Generator().manual_seed(0)

    def as_published(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return {name: weight}
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=draw)
        scales = torch.randint(118, 124, shape, dtype=torch.uint8, generator=draw)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    _rewrite(folder, as_published, {"quant_method": "mxfp4"})
    return folder


@cache
def fp8_checkpoint(family: str, scale_type: torch.dtype = torch.float32) -> Path:
    """Every matrix of attention, experts and dense layers in E4M3 with a scale for each block."""
    folder = session_folder(f"fp8-{family}")
    model = _same_model(family, hidden_size=32)
    model.to(torch.bfloat16).save_pretrained(folder)

    def as_published(name: str, weight: Tensor) -> dict[str, Tensor]:
        if not name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")):
            return {name: weight}
        codes, scales = _quantised(weight.float())
        return {name: codes, f"{name}_scale_inv": scales.to(scale_type)}

    form = {"quant_method": "fp8", "weight_block_size": list(FP8_BLOCK), "activation_scheme": "dynamic"}
    _rewrite(folder, as_published, form)
    return folder


def _same_model(family: str, **sizes: int) -> Any:
    """The same weights whichever test asks first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_model(family, **sizes)


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = FP8_BLOCK
    blocks = weight.view(weight.shape[0] // rows, rows, -1, columns)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    codes = (blocks / scales[:, None, :, None]).view(weight.shape)
    return codes.to(torch.float8_e4m3fn), scales


def _rewrite(folder: Path, convert: Callable[[str, Tensor], dict[str, Tensor]], form: dict) -> None:
    path = folder / "model.safetensors"
    converted = {}
    for name, weight in load_file(path).items():
        converted |= convert(name, weight)
    save_file(converted, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": form}))
