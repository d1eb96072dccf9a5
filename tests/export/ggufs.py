"""Small GGUF files with llama.cpp's names, made from a checkpoint as its converter makes them."""

from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from safetensors.torch import load_file

QUANTISED = {"attn_q": GGMLQuantizationType.Q8_0, "ffn_down": GGMLQuantizationType.Q4_0}
"""Other matrices are Q8_0, as far as their rows are long enough, and routers and vectors F32."""


def write_gguf(
    checkpoint: Path,
    path: Path,
    layers: int,
    change=lambda name, values: values,
    parts: int = 1,
    joined: bool = False,
) -> list[Path]:
    """A GGUF of an OLMoE or Qwen3-MoE checkpoint; `change` gets each tensor by its name, and may give another
    array, or one with a type. Gives the files written.

    joined  gate and up of the experts are one tensor, as llama.cpp's converter makes them on demand
    """
    architecture = (
        MODEL_ARCH.OLMOE if "olmoe" in (checkpoint / "config.json").read_text() else MODEL_ARCH.QWEN3MOE
    )
    name = {MODEL_ARCH.OLMOE: "olmoe", MODEL_ARCH.QWEN3MOE: "qwen3moe"}[architecture]
    tensors = gguf_tensors(checkpoint, architecture, layers)
    if joined:
        tensors = _joined(tensors)
    size = 0 if parts == 1 else -(-len(tensors) // parts)
    writer = GGUFWriter(path, name, split_max_tensors=size)
    writer.add_block_count(layers)
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "ü" * 40])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for tensor, values in tensors.items():
        changed = change(tensor, values)
        if isinstance(changed, tuple):
            writer.add_tensor(tensor, quantize(changed[0], changed[1]), raw_dtype=changed[1])
        else:
            kind = _type(tensor, changed)
            writer.add_tensor(tensor, quantize(changed, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


def _joined(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, values in tensors.items():
        if "ffn_gate_exps" in name:
            up = tensors[name.replace("gate", "up")]
            found[name.replace("gate", "gate_up")] = np.concatenate([values, up], axis=1)
        elif "ffn_up_exps" not in name:
            found[name] = values
    return found


def _type(name: str, values: np.ndarray) -> GGMLQuantizationType:
    if values.ndim == 1 or "ffn_gate_inp" in name or values.shape[-1] % 32:
        return GGMLQuantizationType.F32
    return QUANTISED.get(name.split(".")[-2], GGMLQuantizationType.Q8_0)


def gguf_tensors(checkpoint: Path, architecture: MODEL_ARCH, layers: int) -> dict[str, np.ndarray]:
    """Name in the GGUF -> numbers; the experts of a layer are one tensor."""
    table = get_tensor_name_map(architecture, layers)
    found: dict[str, list[torch.Tensor]] = {}
    stored = load_file(checkpoint / "model.safetensors")
    for key in sorted(
        stored, key=lambda key: [int(part) if part.isdigit() else -1 for part in key.split(".")]
    ):
        parts = key.split(".")
        if "experts" in parts:
            parts.pop(parts.index("experts") + 1)
        name = table.get_name(".".join(parts), try_suffixes=(".weight", ".bias"))
        assert name, key
        found.setdefault(name, []).append(stored[key].float())
    return {
        name: (torch.stack(values) if "_exps" in name else values[0]).numpy()
        for name, values in found.items()
    }
