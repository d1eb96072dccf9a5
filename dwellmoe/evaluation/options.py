"""The command line of evaluation: every option, and what follows from them together."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dwellmoe.adapter_folder import BASE
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.data.task import Task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.command_line import EvaluationOptions, names_of, parse_evaluation, unused_options
from dwellmoe.evaluation.rerouting import NO_REROUTING, FreeRunning, ReroutingSettings
from dwellmoe.evaluation.sandbox.confine import BACKENDS, UNCONFINED
from dwellmoe.model_folder import hold_as_packed, why_frozen
from dwellmoe.offload.check_settings import check_settings
from dwellmoe.registry import take_plugins
from dwellmoe.settings.engine import EngineSettings

BENCHMARK_TOKENS = 4096
"""Longest row of a benchmark: enough for nearly every prompt with its reference answer."""
REROUTED = "-rerouted"
"""Ends the name of a variant that is measured with re-routing."""


class Options(EvaluationOptions):
    """The options of an evaluation, and what follows from them."""

    @property
    def given(self) -> frozenset[str]:
        """Names of the options that were given."""
        return frozenset(self.parser.given)

    @property
    def adapters(self) -> dict[str, str]:
        """Variant -> folder of its adapter, in the order of the report."""
        found = {"control": self.evaluation.control_path}
        if self.adapter.use_lora:
            found["tuned"] = self.adapter.lora_save_path
        return {name: path for name, path in found.items() if path}

    @property
    def rerouting(self) -> ReroutingSettings | None:
        """How choices are re-routed, if they are."""
        cache = self.cache
        if not cache.routing_strategy:
            return None
        return ReroutingSettings(
            strategy=cache.routing_strategy,
            budget=self._expert_budget,
            policy=cache.decode_policy,
            prefill_handoff=cache.prefill_handoff,
            reroute_prefill=cache.reroute_prefill,
        )

    @property
    def free_running(self) -> FreeRunning | None:
        """How the variants write text freely, if they do."""
        settings = self.evaluation
        if settings.free_running is None:
            return None
        temperature = FreeRunning.temperature if settings.temperature is None else settings.temperature
        return FreeRunning(settings.free_running, temperature, self.seed)

    @property
    def engine(self) -> EngineSettings | None:
        """The offloading engine, if the experts do not all stay in memory."""
        live = self.rerouting and self.cache.reroute_live
        if not live and (self.rerouting or not self.cache.expert_budget):
            return None
        given: dict[str, Any] = {name: getattr(self.cache, name) for name in names_of(EngineSettings)}
        given["expert_budget"] = self._expert_budget
        return EngineSettings(**given)

    @property
    def _expert_budget(self) -> str:
        return self.cache.expert_budget or EngineSettings.expert_budget

    @property
    def variants(self) -> Mapping[str, ReroutingSettings | None]:
        """Variant -> how it is re-routed, in the order of the report; `-rerouted` ones come last."""
        names = (BASE, *self.adapters)
        rerouting = self.rerouting
        if rerouting is None:
            return dict.fromkeys(names)
        plain = dict.fromkeys(names, dataclasses.replace(rerouting, strategy=NO_REROUTING))
        return plain | {name + REROUTED: rerouting for name in names if rerouting.strategy != NO_REROUTING}

    @property
    def policies(self) -> list[str]:
        """The eviction policies whose hit rates are reported. Raises UserError."""
        return policy_list(self.evaluation.policies)

    @property
    def backends(self) -> tuple[str, ...]:
        """The sandboxes in which generated programs may run."""
        return (*BACKENDS, UNCONFINED) if self.evaluation.allow_unsafe_code else BACKENDS

    def row_tokens(self, task: Task, model: Any) -> int:
        """Tokens of a row: as given; else, for a benchmark, as many as the model's context holds."""
        if "max_words_len" in self.given or not task.benchmark:
            return self.data.max_words_len
        return min(BENCHMARK_TOKENS, getattr(model.config, "max_position_embeddings", BENCHMARK_TOKENS))

    def fields(self) -> dict[str, Any]:
        """Every setting that affects the numbers, but not where the report is written."""
        evaluation = dataclasses.asdict(self.evaluation)
        for name in ("resume", "results_dir", "json", "chat_mode"):
            del evaluation[name]
        return {
            **dataclasses.asdict(self.model),
            "dataset_name": self.data.dataset_name,
            "max_words_len": self.data.max_words_len,
            "use_chat_template": self.data.use_chat_template,
            "adapters": self.adapters,
            "seed": self.seed,
            **evaluation,
            "policies": self.policies,
            **(dataclasses.asdict(self.cache) if self.rerouting or self.engine else {}),
        }


def policy_list(text: str) -> list[str]:
    """Policies of a comma list, each with its options: `lru,lopt:horizon=2`. Raises UserError."""
    specs: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and ":" not in part and specs:
            specs[-1] += "," + part
        else:
            specs.append(part)
    for spec in specs:
        parse_policy(spec)
    return specs


def parse_options(arguments: list[str]) -> Options:
    """The options of a command line; those without effect here are named in one warning. Raises UserError."""
    options = Options._make(parse_evaluation(take_plugins(arguments)))
    unused = unused_options(rerouting=options.rerouting is not None, engine=options.engine is not None)
    if not (options.evaluation.chat_mode or options.free_running):
        unused.add("temperature")
    options.parser.warn_without_effect(unused, "inference.py")
    check_options(options)
    return options


def check_options(options: Options) -> None:
    """Raises UserError for options that cannot be, or not together. Without torch."""
    policy_list(options.evaluation.policies)
    hold_as_packed(options.model)
    if options.evaluation.input is not None:
        _check_question(options.evaluation.input)
    if options.rerouting:
        options.rerouting.check()
    if options.cache.reroute_live:
        _check_live(options)
    if options.free_running:
        _check_free_running(options)
    if options.engine:
        check_settings(options.engine)
    if options.model.expert_format:
        _check_expert_format(options)


def _check_expert_format(options: Options) -> None:
    if (way := options.adapter.expert_lora) != "sparse":
        raise UserError(f"{why_frozen(options.model)} does not go with --expert_lora {way}")


def _check_question(text: str) -> None:
    """Raises UserError for a prompt that is empty, or was given in bytes that are not UTF-8."""
    if not text.strip():
        raise UserError("--input: the prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # Python keeps such bytes of a command line as lone surrogates
        offset = len(text[: error.start].encode())
        byte = ord(text[error.start]) & 0xFF
        raise UserError(f"--input is not UTF-8: byte 0x{byte:02x} at offset {offset}") from None


def _check_free_running(options: Options) -> None:
    settings = options.evaluation
    given = f"--free_running {settings.free_running}"
    if not options.rerouting:
        raise UserError(
            f"{given}: give a --routing_strategy, whose price in text that is written it measures"
        )
    if settings.chat_mode or settings.task_num is not None or settings.input is not None:
        raise UserError(f"{given} is for a whole evaluation: leave out --chat_mode, --task_num and --input")
    if settings.generate_limit == 0:
        raise UserError(f"{given} with --generate_limit 0: there is no prompt to write after")


def _check_live(options: Options) -> None:
    evaluation = options.evaluation
    if not options.rerouting:
        raise UserError("--reroute_live True: give a --routing_strategy")
    if not evaluation.chat_mode and evaluation.task_num is None and evaluation.input is None:
        raise UserError(
            "--reroute_live True: give --input, --task_num or --chat_mode; a whole evaluation also scores "
            "reference text in one pass, without decode steps, and simulates the cache (--reroute_live False)"
        )
