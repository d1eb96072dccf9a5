"""The command line of training, which is read without importing torch."""

import dataclasses
from typing import Any, NamedTuple

from dwellmoe.data.settings import DataSettings
from dwellmoe.locality.settings import AdapterSettings, LocalitySettings
from dwellmoe.settings.library_options import library_options
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings.streaming import StreamingSettings
from dwellmoe.settings.trainer import TrainerSettings, fit_to_given
from dwellmoe.settings_parser import SettingsParser

ABOUT = "Fine-tunes a MoE model so that consecutive tokens reuse the same experts."
USAGE = "python main.py --model_name FOLDER --dataset_name NAME --lora_save_path FOLDER [options]"
KINDS: tuple[Any, ...] = (ModelSettings, DataSettings, AdapterSettings, LocalitySettings, TrainerSettings)
"""What an evaluation takes as well; `StreamingSettings` has an option that means the cache there."""


class TrainingOptions(NamedTuple):
    """The options of a training run."""

    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings
    locality: LocalitySettings
    trainer: TrainerSettings
    streaming: StreamingSettings
    library: dict[str, Any]
    """Other options of transformers' TrainingArguments that were given."""
    given: frozenset[str]
    """Names of the options that were given, as they were written."""


def training_parser() -> SettingsParser:
    library = library_options()
    rarely = {"output_dir", "remove_unused_columns", *(entry.name for entry in dataclasses.fields(library))}
    return SettingsParser((*KINDS, StreamingSettings, library), USAGE, ABOUT, rarely)


def parse_training(arguments: list[str]) -> TrainingOptions:
    """The options of a command line. UserError for a value that cannot be."""
    parser = training_parser()
    model, data, adapter, locality, trainer, streaming, library = parser.parse(arguments)
    return TrainingOptions(
        model=model,
        data=data,
        adapter=adapter,
        locality=locality,
        trainer=fit_to_given(trainer, parser.given),
        streaming=streaming,
        library={name: value for name, value in vars(library).items() if value is not None},
        given=frozenset(parser.given),
    )
