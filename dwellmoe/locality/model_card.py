"""The model card of a training run, README.md beside its adapter: what it is, and how to load it."""

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SHOWN = {
    "lm_loss": "language-model loss (nats)",
    "perplexity": "perplexity",
    "ecr": "expert consistency rate",
    "hit_rate_lru_25": "hit rate of an LRU cache of 25 % of the experts",
}
"""Validation metric -> what it is."""
LIBRARIES = ("dwellmoe", "torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes")
CONVENTIONS = """\
All are measured on the validation split, teacher-forced, every token counted as decoded. Perplexity: exp of
the mean loss over the tokens of answers. Expert consistency rate: the share of a token's experts that the
token before it in the same request chose too, averaged over pairs and MoE layers. Hit rate: of requested
experts, in a cache of each layer (at least as many slots as a token needs) that is empty at the first token
and serves the requests in turn.
"""
LIMITS = """\
## Limits

Trained and measured on the data set above: on other text, locality and quality may change less, or for the
worse. The hit rate is that of a simulated cache, and says nothing of speed on a device. Limits and licence
of the base model hold here, too; an adapter fits only the base model of this fingerprint.
"""


def model_card(folder: Path, base: str, is_adapter: bool, facts: Mapping[str, str], history: Sequence) -> str:
    """The card as Markdown. `facts`: the rows of its table; `history`: validations, as (step, metrics)."""
    what = "A LoRA adapter" if is_adapter else "A fine-tuned model"
    parts = [
        _front_matter(base, is_adapter),
        f"# {folder.resolve().name}\n",
        f"{what} of `{base}`, trained with DwellMoE so that its routers choose the same experts for "
        "consecutive tokens more often and a cache of experts misses less.\n",
        _table(("", ""), [(name, value) for name, value in facts.items()]),
        _validations(history),
        LIMITS,
        _loading(folder, base, is_adapter),
    ]
    return "\n".join(part for part in parts if part)


def _front_matter(base: str, is_adapter: bool) -> str:
    lines = [f"library_name: {'peft' if is_adapter else 'transformers'}", "pipeline_tag: text-generation"]
    lines += [] if Path(base).is_absolute() else [f"base_model: {base}"]
    return "\n".join(["---", *lines, "tags: [mixture-of-experts, expert-locality]", "---", ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _validations(history: Sequence) -> str:
    """First and kept validation side by side; empty where nothing was validated."""
    if not history:
        return ""
    head = ["validation", *(f"step {step}" for step, _ in history)]
    rows = [[text, *(_number(metrics, name) for _, metrics in history)] for name, text in SHOWN.items()]
    title = "Before and after" if len(history) > 1 else "Measured"
    return f"## {title}\n\n{_table(head, rows)}\n{CONVENTIONS}"


def library_versions() -> str:
    """The installed libraries that training goes through, each with its version."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _number(metrics: Mapping[str, float], name: str) -> str:
    value = metrics.get(f"eval_{name}")
    if name == "perplexity" and (loss := metrics.get("eval_lm_loss")) is not None:
        value = math.exp(min(loss, 700.0))  # beyond that a float overflows
    return "not measured" if value is None else f"{value:.4g}"


def _loading(folder: Path, base: str, is_adapter: bool) -> str:
    if not is_adapter:
        return f"```\npython inference.py --model_name {folder} --use_lora False --dataset_name NAME\n```\n"
    return f"""## How to load it

With PEFT:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(model, {str(folder)!r})
```

With DwellMoE:

```
python inference.py --model_name {base} --lora_save_path {folder} --dataset_name NAME
```

In other programs: `dwellmoe export` writes the tuned routers alone, which `dwellmoe apply` puts on any copy
of the base model, a GGUF with them in it, an adapter with one LoRA an expert, or the merged model.
"""
