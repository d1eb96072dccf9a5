"""Translates command lines of CECAR into the options of this project.

Nothing given is dropped in silence: an option without a counterpart is named in a warning, or refused.
"""

from collections.abc import Mapping, Sequence

from dwellmoe.errors import UserError, unknown_name
from dwellmoe.log import warn_once

RENAMED = {
    **dict.fromkeys(("model", "simulation_model"), "model_name"),
    **dict.fromkeys(("tasks", "test_task"), "dataset_name"),
    **dict.fromkeys(("n_token", "max_length_generation"), "max_new_tokens"),
    "cache_policy": "decode_policy",
    "cache_size": "expert_budget",
    "peft_model": "lora_save_path",
    "precision": "dtype",
}
VALUES = {
    "Qwen3_30B_A3B": "Qwen/Qwen3-30B-A3B",
    "OLMoE_1B_7B_0125_Instruct": "allenai/OLMoE-1B-7B-0125-Instruct",
    "DeepSeek_v2_Lite_Chat": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "ML_CECAR": "ml_cecar",
    "ML_FlashMoE": "ml_flashmoe",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
}
MODES = ("none", "des", "odp")
BONUSES = {name: name for name in ("cecar", "mocce", "none", "random", "constant", "lfu", "lru")} | {
    "const": "constant"
}
_BONUS_FIELDS = {"topk_threshold": "tau", "margin_topk_idx": "m"}
BONUS_OPTIONS: dict[str, dict[str, str]] = {
    "mocce": {"lambda_cache": "strength", "top_J": "always"},
    **dict.fromkeys(("cecar", "random", "constant", "lfu", "lru"), _BONUS_FIELDS),
}
"""Strategy -> CECAR's option for it -> our option of the strategy (`mocce:strength=0.2`)."""
ROUTING = ("mode", "bonus_strategy", "bonus", "lambda_cache", "top_J", "topk_threshold", "margin_topk_idx")
_CHECKPOINT = "a checkpoint is read as published"
_SPEC = "give it with the name, as in --decode_policy ml_cecar:..."
NEEDLESS = {
    **dict.fromkeys(("expert_path", "shared_expert_path", "non_expert_model"), _CHECKPOINT),
    **dict.fromkeys(("ffn_model_path", "des_thresholds_path", "mcmoe_threshold_path"), _SPEC),
    "allow_code_execution": "programs always run, in a sandbox",
}
FLAGS = {"use_chat_template": "on", "allow_code_execution": ""}
"""Options that CECAR takes without a value -> the value they then have."""
OWN = {*RENAMED, *ROUTING, *NEEDLESS} - {"mode"}


def translate(arguments: Sequence[str]) -> list[str]:
    """The command line with CECAR's options replaced by ours; unchanged if it has none of them.

    Raises UserError for a value that CECAR does not know. A warning names options without a counterpart.
    """
    pairs = _pairs(arguments)
    if not {name for name, _ in pairs} & {*OWN, "mode"}:
        return list(arguments)
    _warn_of_repeated(pairs)
    given = {name: value for name, value in pairs if name in ROUTING}
    ours = [
        (RENAMED.get(name, name), VALUES.get(value, value)) for name, value in pairs if name not in ROUTING
    ]
    for name in [name for name, _ in ours if name in NEEDLESS]:
        warn_once(f"warning: --{name} has no effect here: {NEEDLESS[name]}")
    ours = [(name, value) for name, value in ours if name not in NEEDLESS]
    names = {name for name, _ in ours}
    if (given or names & {"decode_policy", "expert_budget"}) and "routing_strategy" not in names:
        ours.append(("routing_strategy", _strategy(given)))
    if not names & {"lora_save_path", "use_lora"}:
        ours.append(("use_lora", "False"))
    return [text for name, value in ours for text in (f"--{name}", value)]


def _warn_of_repeated(pairs: Sequence[tuple[str, str]]) -> None:
    """Says which options of routing are given twice; of all others the parser says so."""
    names = [name for name, _ in pairs]
    for name in ROUTING:
        if names.count(name) > 1:
            texts = (f"--{given} {value}" for given, value in pairs if given == name)
            warn_once(f"warning: given more than once: {', '.join(texts)}: the last one counts")


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """(name, value) of every option, dashes in names as underscores."""
    pairs = []
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals:
            value = FLAGS.get(name, "True") if not rest or rest[0].startswith("--") else rest.pop(0)
        pairs.append((name, value))
    return pairs


def _strategy(given: Mapping[str, str]) -> str:
    """Our routing strategy for `--mode`, `--bonus_strategy` and their options."""
    mode = given.get("mode", "none")
    bonus = given.get("bonus_strategy", given.get("bonus", "none"))
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    if bonus not in BONUSES:
        raise unknown_name("bonus strategy", bonus, BONUSES)
    if mode != "none" and bonus != "none":
        warn_once(f"warning: --mode {mode} takes no bonus: --bonus_strategy {bonus} has no effect")
    name = mode if mode != "none" else BONUSES[bonus]
    renamed = BONUS_OPTIONS.get(name, {})
    extra = [key for key in given if key not in ("mode", "bonus_strategy", "bonus")]
    if stray := [key for key in extra if key not in renamed]:
        raise UserError(f"--{stray[0]}: strategy '{name}' has no such option: leave it out")
    options = ",".join(f"{renamed[key]}={given[key]}" for key in extra)
    return f"{name}:{options}" if options else name
