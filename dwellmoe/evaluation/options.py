"""Knows what the command line of evaluation said, as far as it matters there; evaluates nothing."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from dwellmoe.data.settings import DataSettings
from dwellmoe.data.task import Task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.cecar_names import in_our_names
from dwellmoe.evaluation.report.cache_rows import policy_list
from dwellmoe.evaluation.report.rerouting_rows import REROUTED
from dwellmoe.evaluation.rerouting_settings import NONE, ReroutingSettings
from dwellmoe.evaluation.sandbox.confine import BACKENDS, UNCONFINED
from dwellmoe.evaluation.settings import CacheSettings, EvaluationSettings
from dwellmoe.families.settings import ModelSettings
from dwellmoe.loading import BASE
from dwellmoe.locality.settings import AdapterSettings, LocalitySettings
from dwellmoe.offload.attach import check_settings
from dwellmoe.offload.settings import EngineSettings
from dwellmoe.settings_parser import SettingsParser, settings_parser

BENCHMARK_TOKENS = 4096
"""Longest row of a benchmark: enough for nearly every prompt with its reference answer."""
USED = {
    *(field.name for field in dataclasses.fields(ModelSettings)),
    *("dataset_name", "max_words_len", "lora_save_path", "use_lora", "seed", "output_dir"),
}


class Options(NamedTuple):
    """What the command line said, as far as it matters here."""

    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings
    seed: int
    evaluation: EvaluationSettings
    cache: CacheSettings
    given: frozenset[str] = frozenset()
    """Names of the options that were given."""

    @property
    def adapters(self) -> dict[str, str]:
        """Variant -> folder of its adapter, in the order of the report."""
        found = {"control": self.evaluation.control_path}
        if self.adapter.use_lora:
            found["tuned"] = self.adapter.lora_save_path
        return {name: path for name, path in found.items() if path}

    @property
    def virtual(self) -> ReroutingSettings | None:
        """How choices are re-routed, if they are."""
        cache = self.cache
        if not cache.routing_strategy:
            return None
        held = self._expert_budget, cache.decode_policy, cache.prefill_handoff
        return ReroutingSettings(cache.routing_strategy, *held, cache.reroute_prefill)

    @property
    def engine(self) -> EngineSettings | None:
        """The offloading engine, if the experts do not all stay in memory."""
        live = self.virtual and self.cache.reroute_live
        if not live and (self.virtual or not self.cache.expert_budget):
            return None
        given: dict[str, Any] = {name: getattr(self.cache, name) for name in _names(EngineSettings)}
        given["expert_budget"] = self._expert_budget
        return EngineSettings(**given)

    @property
    def _expert_budget(self) -> str:
        return self.cache.expert_budget or EngineSettings.expert_budget

    @property
    def variants(self) -> Mapping[str, ReroutingSettings | None]:
        """Variant -> the cache it routes by, in the order of the report; `-rerouted` ones come last."""
        names, setup = (BASE, *self.adapters), self.virtual
        if setup is None:
            return dict.fromkeys(names)
        plain = dict.fromkeys(names, dataclasses.replace(setup, strategy=NONE))
        return plain | {name + REROUTED: setup for name in names if setup.strategy != NONE}

    @property
    def backends(self) -> tuple[str, ...]:
        """How generated programs may be fenced."""
        return (*BACKENDS, UNCONFINED) if self.evaluation.allow_unsafe_code else BACKENDS

    def row_tokens(self, task: Task, model: Any) -> int:
        """Tokens of a row: as given; of a benchmark otherwise as many as the model's context holds."""
        if "max_words_len" in self.given or not task.benchmark:
            return self.data.max_words_len
        return min(BENCHMARK_TOKENS, getattr(model.config, "max_position_embeddings", BENCHMARK_TOKENS))

    def fields(self) -> dict[str, Any]:
        """Every setting that bears on the numbers, but not where the report goes."""
        evaluation = dataclasses.asdict(self.evaluation)
        for name in ("results_dir", "json", "chat_mode"):
            del evaluation[name]
        data = {"dataset_name": self.data.dataset_name, "max_words_len": self.data.max_words_len}
        chosen = {"adapters": self.adapters, "seed": self.seed}
        policies = {"policies": policy_list(self.evaluation.policies)}
        cache = dataclasses.asdict(self.cache) if self.virtual or self.engine else {}
        return dataclasses.asdict(self.model) | data | chosen | evaluation | policies | cache


def parse_options(arguments: list[str], description: str, train_settings: type) -> Options:
    """The options of a command line; those without effect here are named in one warning. Raises UserError.

    `train_settings` is the dataclass of the Trainer's options, which are accepted though nothing is trained.
    """
    kinds = (ModelSettings, DataSettings, AdapterSettings, LocalitySettings, train_settings)
    parser = settings_parser((*kinds, EvaluationSettings, CacheSettings), description)
    model, data, adapter, _, train, evaluation, cache = parser.parse(in_our_names(arguments))
    options = Options(model, data, adapter, train.seed, evaluation, cache, frozenset(parser.given))
    _warn(parser, options, train_settings)
    policy_list(evaluation.policies)
    if options.virtual:
        options.virtual.check()
    if options.cache.reroute_live:
        _check_live(options)
    if options.engine:
        check_settings(options.engine)
    return options


def _check_live(options: Options) -> None:
    evaluation = options.evaluation
    if not options.virtual:
        raise UserError("--reroute_live True: say how, with --routing_strategy")
    if not evaluation.chat_mode and evaluation.task_num is None and evaluation.input is None:
        raise UserError(
            "--reroute_live True: give --input, --task_num or --chat_mode; a whole evaluation also scores "
            "reference text in one pass, without decode steps, and simulates the cache (--reroute_live False)"
        )


def _warn(parser: SettingsParser, options: Options, train_settings: type) -> None:
    kinds = (DataSettings, AdapterSettings, LocalitySettings, train_settings)
    names = {"batch_size"}.union(*map(_names, kinds), _names(CacheSettings))
    if options.virtual:
        names -= {"routing_strategy", "expert_budget", "decode_policy", "prefill_handoff"}
        names -= {"reroute_prefill", "reroute_live"}
    if options.engine:
        names -= _names(EngineSettings)
    if os.environ.get("RANK", "0") == "0":
        unused = dataclasses.make_dataclass("Unused", sorted(names - USED))
        parser.warn_without_effect(unused, "inference.py")


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}
