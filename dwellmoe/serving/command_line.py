"""The command lines of the server and of the chat: a model, its adapters, its cache. Without torch."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from dwellmoe.adapter_folder import check_adapter_folder
from dwellmoe.base_model import check_base_model
from dwellmoe.data.wording import saved_wording
from dwellmoe.errors import UserError
from dwellmoe.files import check_name
from dwellmoe.model_folder import check_model_folder
from dwellmoe.offload.check_settings import check_settings
from dwellmoe.options import split_off
from dwellmoe.routing.strategies import load_strategy
from dwellmoe.serving.settings import CacheSettings
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings_parser import SettingsParser


class Options(NamedTuple):
    """The options of a command line."""

    own: Any
    """Those of the command itself, a kind of `ServedSettings`."""
    cache: CacheSettings
    model: ModelSettings
    adapters: dict[str, str]
    """Name -> folder."""

    @property
    def engine(self) -> EngineSettings | None:
        """None: all experts in memory."""
        if not self.cache.expert_budget:
            return None
        names = (field.name for field in dataclasses.fields(EngineSettings))
        return EngineSettings(**{name: getattr(self.cache, name) for name in names})

    @property
    def base_name(self) -> str:
        """The name by which the model without adapters is asked for."""
        return base_name(self.model.model_name)


def parser_of(kind: Any, usage: str, about: str) -> SettingsParser:
    """A parser of the options of a command (`kind`), the cache and the model."""
    return SettingsParser((kind, CacheSettings, ModelSettings), usage, about)


def parse(words: list[str], kind: Any, usage: str, about: str) -> Options:
    """The options of a command line that begins with the model. Raises UserError."""
    if words and not words[0].startswith("-"):
        words = ["--model_name", *words]
    given, words = split_off(words, "--adapter", "the folder of an adapter")
    parser = parser_of(kind, usage, about)
    own, cache, model = parser.parse([*words, "--adapter", ",".join(given)] if given else words)
    if "model_name" not in parser.given:
        raise UserError(f"MODEL is missing: {usage}")
    if not cache.expert_budget:
        unused = {field.name for field in dataclasses.fields(CacheSettings)} - {"routing_strategy"}
        parser.warn_without_effect(unused, " ".join([*usage.split()[:2], "without --expert_budget"]))
    return Options(own, cache, model, adapter_folders(own.adapters, model.model_name))


def check(options: Options) -> None:
    """Raises UserError for whatever is wrong with options, model and adapters and is known without torch."""
    if strategy := options.cache.routing_strategy:
        load_strategy(strategy)
        if not options.engine:
            raise UserError(f"--routing_strategy {strategy}: give --expert_budget, by which it chooses")
    if options.engine:
        check_settings(options.engine)
    name = options.model.model_name
    check_model_folder(name)
    for folder in options.adapters.values():
        check_adapter_folder(folder)
        saved_wording(folder)
    if Path(name).is_dir():
        other = options.own.allow_other_base
        check_base_model(options.adapters.values(), name, other, options.model.expert_format)


def base_name(model_name: str) -> str:
    """The name by which a model without adapters is asked for: that of its folder, or of the hub."""
    return _folder_name(model_name) if Path(model_name).is_dir() else model_name


def _folder_name(path: str) -> str:
    """The last part of a path, also of "." and "..": of a link its own name, not that of its target."""
    return Path(os.path.abspath(path)).name


def adapter_folders(given: list[str], model_name: str) -> dict[str, str]:
    """Name -> folder of each adapter. Raises UserError for a name that cannot be, or that two have."""
    found: dict[str, str] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():
            name, folder = _folder_name(text), text
        check_name(name, f"--adapter {text}: the name of the adapter")
        if name in found or name == base_name(model_name):
            raise UserError(f"--adapter {text}: the name '{name}' is taken: give another, NAME=FOLDER")
        found[name] = folder
    return found
