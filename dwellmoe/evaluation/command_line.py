"""The command line of evaluation, which is read without importing torch."""

import dataclasses
from typing import Any, NamedTuple

from dwellmoe.data.settings import DataSettings
from dwellmoe.evaluation.cecar_names import translate
from dwellmoe.evaluation.settings import CacheSettings, EvaluationSettings
from dwellmoe.locality.command_line import KINDS as OF_TRAINING
from dwellmoe.locality.settings import AdapterSettings
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.library_options import library_options
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings_parser import SettingsParser

ABOUT = (
    "Evaluates a model with and without its adapters (quality, routing locality, cache hits), answers one "
    "prompt (--input, --task_num), or chats (--chat_mode). The options of training are accepted too; those "
    "that are not listed here have no effect."
)
USAGE = "python inference.py --model_name FOLDER --dataset_name NAME --lora_save_path FOLDER [options]"


class EvaluationOptions(NamedTuple):
    """The options of a command line of evaluation."""

    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings
    seed: int
    evaluation: EvaluationSettings
    cache: CacheSettings
    parser: SettingsParser
    """It holds the names of the options that were given."""


def names_of(kind: Any) -> set[str]:
    """Names of the options of a dataclass."""
    return {field.name for field in dataclasses.fields(kind)}


USED = {
    *names_of(ModelSettings),
    *("dataset_name", "max_words_len", "use_chat_template", "allow_beyond_context"),
    *("lora_save_path", "use_lora", "expert_lora", "allow_other_base", "seed"),
}
"""Options of training that an evaluation uses."""


def options_of_training() -> set[str]:
    """Names of all options of training."""
    return set().union(*map(names_of, (*OF_TRAINING, library_options())))


def evaluation_parser() -> SettingsParser:
    kinds = (EvaluationSettings, CacheSettings, *OF_TRAINING, library_options())
    return SettingsParser(kinds, USAGE, ABOUT, options_of_training() - USED)


def parse_evaluation(arguments: list[str]) -> EvaluationOptions:
    """The options of a command line. UserError for a value that cannot be."""
    parser = evaluation_parser()
    evaluation, cache, model, data, adapter, _, trainer, _ = parser.parse(translate(arguments))
    return EvaluationOptions(
        model=model,
        data=data,
        adapter=adapter,
        seed=trainer.seed,
        evaluation=evaluation,
        cache=cache,
        parser=parser,
    )


def unused_options(rerouting: bool, engine: bool) -> set[str]:
    """Names of the options that have no effect, with or without re-routing and an offloading engine."""
    names = {"batch_size", *options_of_training(), *names_of(CacheSettings)}
    if rerouting:
        names -= {"routing_strategy", "expert_budget", "decode_policy", "prefill_handoff"}
        names -= {"reroute_prefill", "reroute_live"}
    if engine:
        names -= names_of(EngineSettings)
    return names - USED - {"output_dir"}
