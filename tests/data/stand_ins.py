"""Stand-ins of a few lines: a tokenizer of words, a data set of a user's own."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["<bos>", "<eos>", "<pad>", "<unk>", *(f"w{n}" for n in range(100))]

TASK = """
prompt = "{question}"
answer = " {reply}"
fields = ["question", "reply"]
form = "free_text"
metric = "rouge"
[[source]]
kind = "file"
files = { train = "a.jsonl", validation = "b.jsonl", test = "c.jsonl" }
"""


def word_tokenizer(with_bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word `w0`..`w99`; puts BOS before a text as many real tokenizers do, or nothing."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if with_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def words(first: int, count: int) -> str:
    """`count` words from number `first` on."""
    return " ".join(f"w{first + n}" for n in range(count))


def write_task(folder: Path, text: str = TASK, **splits: list[dict]) -> Path:
    """A task file with JSONL splits `a` (train), `b` (validation), `c` (test) beside it."""
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "task.toml"
    path.write_text(text)
    return path
