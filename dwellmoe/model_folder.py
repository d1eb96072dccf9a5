"""Checks a model by its files alone, without torch: a wrong folder is refused before torch is imported."""

import json
from pathlib import Path

from dwellmoe.data.remote import hub_answers
from dwellmoe.errors import UserError
from dwellmoe.offload.io.packed_index import AS_STORED, is_packed
from dwellmoe.offload.io.shards import (
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    check_checkpoint,
    check_folder,
    find_shards,
)
from dwellmoe.settings.model import ModelSettings

CONFIG = "config.json"
TOKENIZERS = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "spiece*", "tekken.json")


def check_model_folder(model_name: str, with_tokenizer: bool = True) -> None:
    """Raises UserError for a checkpoint whose configuration, weights or tokenizer are missing or cut; for a
    name on the hub only where nothing of it can be had.
    """
    check_folder(model_name)
    folder = Path(model_name)
    if not folder.is_dir():
        _check_on_hub(model_name)
        return
    read_config(folder)
    if with_tokenizer and not any(path for pattern in TOKENIZERS for path in folder.glob(pattern)):
        raise UserError(f"no tokenizer in '{model_name}': its files are missing")
    is_pickled = any((folder / name).exists() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    (check_checkpoint if is_pickled else find_shards)(model_name)


def hold_as_packed(model: ModelSettings) -> None:
    """Has the experts of a packed model be held in memory as they are packed, unless a format is given."""
    if model.expert_format is None and Path(model.model_name).is_dir() and is_packed(model.model_name):
        model.expert_format = AS_STORED


def why_frozen(model: ModelSettings) -> str:
    """What messages name as the reason for which a model's experts are no parameters of 16 or 32 bits."""
    if model.expert_format == AS_STORED and is_packed(model.model_name):
        return f"'{model.model_name}' is packed, which"
    return f"--expert_format {model.expert_format}"


def read_config(folder: Path) -> dict:
    """The configuration of a checkpoint as it is written. Raises UserError."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no model in '{folder}': {CONFIG} is missing") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' cannot be read: not a JSON object")
    return found


def _check_on_hub(name: str) -> None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        is_here = isinstance(try_to_load_from_cache(name, CONFIG), str)
    except HFValidationError:
        raise UserError(f"no model folder at '{name}', which is no name on the hub either") from None
    if not is_here and (constants.HF_HUB_OFFLINE or not hub_answers()):
        raise UserError(f"no model folder at '{name}', and the hub, which may have it, does not answer")
