"""The command line of `dwellmoe lm-eval`, which is read and checked without importing torch."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dwellmoe.data.settings import DataSettings
from dwellmoe.errors import UserError
from dwellmoe.evaluation.checks import check_model_and_adapters
from dwellmoe.evaluation.options import Options, check_options, policy_list
from dwellmoe.evaluation.report.folder import check_outputs, choose_folder
from dwellmoe.evaluation.settings import CacheSettings, EvaluationSettings
from dwellmoe.folder_lock import only_writer
from dwellmoe.harness.settings import HarnessSettings
from dwellmoe.locality.settings import AdapterSettings
from dwellmoe.options import split_list
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings_parser import SettingsParser

ABOUT = (
    "Runs tasks of EleutherAI's lm-eval harness, unchanged, on a model with and without its adapters, and "
    "puts the "
    "locality of its routing, cache hits and bytes missed beside each score."
)
USAGE = "dwellmoe lm-eval --model_name FOLDER --tasks NAMES [options]"
OTHER_FOLDER = "choose another --output_path"
NO_EFFECT_ALONE = ("decode_policy", "prefill_handoff", "reroute_prefill")
"""Options of re-routing, which have no effect without a routing strategy."""
NEAREST = 5


class HarnessOptions:
    """The options of one command line: those of the harness, and those of the model and its cache as an
    evaluation has them.
    """

    def __init__(self, harness: HarnessSettings, evaluation: Options) -> None:
        self.harness = harness
        self.evaluation = evaluation

    @property
    def tasks(self) -> list[str]:
        """The names of --tasks, each once."""
        return list(dict.fromkeys(split_list(self.harness.tasks)))

    @property
    def policies(self) -> list[str]:
        """The eviction policies whose hit rates are reported. Raises UserError."""
        return policy_list(self.harness.policies)

    @property
    def expert_budget(self) -> str:
        """The size of the cache that hit rates are counted in."""
        return self.evaluation.cache.expert_budget or EngineSettings.expert_budget

    @property
    def batch_size(self) -> int:
        """Rows at once: one where a cache serves the model, whose content depends on the order of tokens."""
        return 1 if self.evaluation.rerouting or self.evaluation.engine else self.harness.batch_size

    def fields(self) -> dict[str, Any]:
        """Every setting that affects the numbers."""
        found = dataclasses.asdict(self.harness)
        for name in ("output_path", "json", "resume", "lora_save_path", "control_path", "allow_other_base"):
            del found[name]
        cached = self.evaluation.rerouting or self.evaluation.engine
        return {
            **dataclasses.asdict(self.evaluation.model),
            "adapters": self.evaluation.adapters,
            **found,
            "batch_size": self.batch_size,
            "expert_budget": self.expert_budget,
            **(
                dataclasses.asdict(self.evaluation.cache) | {"expert_budget": self.expert_budget}
                if cached
                else {}
            ),
        }

    def folder(self) -> Path:
        """The folder of the results; of other settings there is another."""
        model = self.evaluation.model
        names = [
            Path(model.model_name).name,
            *(Path(path).name for path in self.evaluation.adapters.values()),
        ]
        default = Path(f"./results{model.model_key}") / "-".join(["lm-eval", *names])
        given = self.harness.output_path
        return choose_folder(Path(given) if given else default, self.fields())


def harness_parser() -> SettingsParser:
    """The parser of the command."""
    return SettingsParser((HarnessSettings, ModelSettings, CacheSettings), USAGE, ABOUT, {"reroute_live"})


def parse_harness(arguments: list[str]) -> HarnessOptions:
    """The options of a command line. UserError for a value that cannot be."""
    parser = harness_parser()
    harness, model, cache = parser.parse(arguments)
    evaluation = Options(
        model=model,
        data=DataSettings(),
        adapter=AdapterSettings(
            lora_save_path=harness.lora_save_path or "", allow_other_base=harness.allow_other_base
        ),
        seed=harness.torch_random_seed,
        evaluation=EvaluationSettings(control_path=harness.control_path),
        cache=cache,
        parser=parser,
    )
    options = HarnessOptions(harness, evaluation)
    parser.warn_without_effect(_without_effect(evaluation), "dwellmoe lm-eval")
    if options.batch_size != harness.batch_size:
        parser.warn_without_effect(
            {"batch_size"}, "dwellmoe lm-eval, which runs rows one by one through a cache,"
        )
    return options


def _without_effect(evaluation: Options) -> set[str]:
    """Options of a cache that the run does not have."""
    names = {field.name for field in dataclasses.fields(EngineSettings)} - {"expert_budget"}
    if evaluation.engine:
        return {*NO_EFFECT_ALONE} - names
    return names | {*NO_EFFECT_ALONE} if not evaluation.rerouting else names - {*NO_EFFECT_ALONE}


def check_harness(options: HarnessOptions) -> None:
    """Raises UserError for whatever is wrong and can be found without torch."""
    evaluation, harness = options.evaluation, options.harness
    if not options.tasks:
        raise UserError("--tasks: give at least one task, as in --tasks hellaswag,arc_easy")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('package lm_eval is not installed: pip install "dwellmoe[lm-eval]"')
    if harness.include_path is not None and not Path(harness.include_path).is_dir():
        raise UserError(f"--include_path {harness.include_path}: no such folder")
    if evaluation.cache.reroute_live:
        raise UserError("--reroute_live True: the harness scores whole rows at once; leave it out")
    options.policies  # noqa: B018 - raises UserError
    check_options(evaluation)
    check_model_and_adapters(evaluation, harness.allow_other_base, evaluation.model.expert_format)
    folder = options.folder()
    check_outputs(folder, harness.json)
    with only_writer(folder, OTHER_FOLDER):
        pass


def unknown_task(name: str, known: Collection[str], include_path: str | None) -> UserError:
    """The error for a task that does not exist, with the nearest of the thousands there are."""
    near = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "lm-eval ls tasks lists them"
    own = f", those of --include_path {include_path} among them" if include_path else ""
    return UserError(f"--tasks: unknown task '{name}': {hint} ({len(known)} are known{own})")
