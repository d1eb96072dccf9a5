"""Evaluates a model with and without its adapters: quality, locality, cache hits; or chats with it.

    torchrun --standalone --nproc_per_node=2 inference.py --model_name PATH --lora_save_path ADAPTER

Takes the options of training, of which most have no effect here, and those of EvaluationSettings.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from command_line import SettingsParser, settings_parser
from config import (
    SETTINGS,
    AdapterSettings,
    CacheSettings,
    DataSettings,
    EvaluationSettings,
    LocalitySettings,
    ModelSettings,
    TrainSettings,
)
from data_pipeline.task import Task, load_task
from errors import run_command
from evaluation.cache_rows import policy_list
from evaluation.chat import chat
from evaluation.choices import choice_rows
from evaluation.console import print_summary
from evaluation.measure import Measured, Workload, measure, one_after_the_other, workload
from evaluation.output import write_also, write_results
from evaluation.quality import quality_row
from evaluation.ranks import Ranks, joined_ranks
from evaluation.report import build_report
from evaluation.requests import Request, load_requests
from evaluation.rerouting_rows import REROUTED, rerouting_rows
from evaluation.speed import device_note, find_device, speed_rows
from evaluation.subject import Subject
from evaluation.virtual_setup import NONE, VirtualSetup
from expert_cache.plan import DeviceProfile
from model_loader import BASE, active_variant, load_adapters, load_model, load_tokenizer, quiet
from models import find_moe_layers

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

    @property
    def adapters(self) -> dict[str, str]:
        """Variant -> folder of its adapter, in the order of the report."""
        found = {"control": self.evaluation.control_path}
        if self.adapter.use_lora:
            found["tuned"] = self.adapter.lora_save_path
        return {name: path for name, path in found.items() if path}

    @property
    def virtual(self) -> VirtualSetup | None:
        """How choices are re-routed, if they are."""
        cache = self.cache
        if not cache.routing_strategy:
            return None
        held = cache.expert_budget, cache.decode_policy, cache.hand_over
        return VirtualSetup(cache.routing_strategy, *held, cache.reroute_prefill)

    @property
    def variants(self) -> dict[str, VirtualSetup | None]:
        """Variant -> the cache it routes by, in the order of the report; `-rerouted` ones come last."""
        names, setup = (BASE, *self.adapters), self.virtual
        if setup is None:
            return dict.fromkeys(names)
        plain = dict.fromkeys(names, dataclasses.replace(setup, strategy=NONE))
        return plain | {name + REROUTED: setup for name in names if setup.strategy != NONE}

    def fields(self) -> dict[str, Any]:
        """Every setting that bears on the numbers, but not where the report goes."""
        evaluation = dataclasses.asdict(self.evaluation)
        for name in ("results_dir", "json", "chat_mode"):
            del evaluation[name]
        data = {"dataset_name": self.data.dataset_name, "max_words_len": self.data.max_words_len}
        chosen = {"adapters": self.adapters, "seed": self.seed}
        policies = {"policies": policy_list(self.evaluation.policies)}
        cache = dataclasses.asdict(self.cache) if self.virtual else {}
        return dataclasses.asdict(self.model) | data | chosen | evaluation | policies | cache


def parse(arguments: list[str]) -> Options:
    """The options of a command line; those without effect here are named in one warning. Raises UserError."""
    parser = settings_parser((*SETTINGS, EvaluationSettings, CacheSettings), __doc__ or "")
    model, data, adapter, _, train, evaluation, cache = parser.parse(arguments)
    options = Options(model, data, adapter, train.seed, evaluation, cache)
    _warn(parser, options)
    policy_list(evaluation.policies)
    if options.virtual:
        options.virtual.check()
    return options


def _warn(parser: SettingsParser, options: Options) -> None:
    kinds = (DataSettings, AdapterSettings, LocalitySettings, TrainSettings)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)} | {"batch_size"}
    if options.virtual is None:
        names |= {field.name for field in dataclasses.fields(CacheSettings)}
    if os.environ.get("RANK", "0") == "0":
        unused = dataclasses.make_dataclass("Unused", sorted(names - USED))
        parser.warn_without_effect(unused, "inference.py")


def load_subject(options: Options) -> Subject:
    """The model with all adapters on it, and its tokenizer. Raises UserError."""
    tokenizer = load_tokenizer(options.model)
    model = load_model(options.model)
    name = Path(options.model.model_name).name
    find_moe_layers(model, options.model.moe_module_name)
    if options.adapters:
        model = load_adapters(model, options.adapters)
    return Subject(model.eval(), tokenizer, find_moe_layers(model), name)


def evaluate(options: Options, ranks: Ranks) -> None:
    """Measures every variant on the same requests; the first rank writes the report."""
    settings, task = options.evaluation, load_task(options.data.dataset_name)
    device = find_device(settings.device_profile)
    subject = load_subject(options)
    requests, work = _load_work(options, task, subject)
    console = Console(stderr=settings.json == "-", quiet=not ranks.first, soft_wrap=True)
    console.print(_limits(options, task, requests, work), highlight=False)
    measured = {}
    for variant, setup in options.variants.items():
        with active_variant(subject.model, variant.removesuffix(REROUTED)):
            measured[variant] = measure(subject, work, ranks, variant, setup)
    if ranks.first:
        report = _report(options, task, subject, device, requests, measured)
        folder = write_results(_wanted_folder(options, task), report, measured, requests)
        write_also(settings.json, report)
        print_summary(report, console)
        console.print(f"report: {folder / 'report.html'}", highlight=False)


def _load_work(options: Options, task: Task, subject: Subject) -> tuple[list[Request], Workload]:
    settings, tokens = options.evaluation, options.data.max_words_len
    requests = load_requests(
        task, settings.split, subject.tokenizer, tokens, settings.limit_evaluation, options.seed
    )
    choices = choice_rows(task, requests, subject.tokenizer, tokens, settings.choice_limit)
    generated = settings.generate_limit, settings.max_new_tokens
    work = workload(requests, choices, settings.eval_batch_size, *generated)
    return requests, one_after_the_other(work) if options.virtual else work


def _limits(options: Options, task: Task, requests: Sequence[Request], work: Workload) -> str:
    settings = options.evaluation
    answered, ranked = (sum(map(len, batches)) for batches in (work.generated, work.choices))
    return (
        f"{task.name}, {settings.split}: {len(requests)} requests (--limit_evaluation), {answered} answered "
        f"with at most {settings.max_new_tokens} tokens (--generate_limit, --max_new_tokens), {ranked} other "
        f"choices ranked (--choice_limit); variants: {', '.join(options.variants)}"
    )


def _report(
    options: Options,
    task: Task,
    subject: Subject,
    device: DeviceProfile,
    requests: Sequence[Request],
    measured: dict[str, Measured],
) -> dict:
    resamples = options.evaluation.bootstrap_samples
    rows = [quality_row(name, task, requests, found, resamples) for name, found in measured.items()]
    lengths = [len(request.row["input_ids"]) for request in requests]
    data = {
        "dataset": task.name,
        "split": options.evaluation.split,
        "requests": len(requests),
        "tokens": sum(lengths),
        "generated_requests": len(measured[BASE].answers),
        "cut_prompts": sum(request.row["cut_prompt_tokens"] > 0 for request in requests),
        "cut_answers": sum(request.row["cut_answer_tokens"] > 0 for request in requests),
    }
    about = {
        "model": subject.fields(),
        "data": data,
        "device": dataclasses.asdict(device) | {"about": device_note(device)},
    }
    rerouting = []
    if setup := options.virtual:
        rows_found = rerouting_rows(measured, setup.strategy, subject.expert_bytes, resamples)
        rerouting = [row | setup.fields(subject) for row in rows_found]
    report = build_report(options.fields(), about, measured, rows, rerouting)
    return report | {"speed": speed_rows(device, measured, report["cache"], subject.resident_bytes)}


def _wanted_folder(options: Options, task: Task) -> Path:
    if options.evaluation.results_dir:
        return Path(options.evaluation.results_dir)
    names = [_label(Path(path)) for path in options.adapters.values()] or [BASE]
    return Path(f"./results{options.model.model_key}") / "-".join([task.name, *names])


def _label(adapter: Path) -> str:
    """An adapter's folder name; of a checkpoint with the name of its run."""
    path = adapter.resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def main() -> None:
    options = parse(sys.argv[1:])
    quiet()
    if not options.evaluation.chat_mode:
        with joined_ranks() as ranks:
            evaluate(options, ranks)
        return
    subject = load_subject(options)
    with active_variant(subject.model, "tuned" if "tuned" in options.adapters else BASE):
        chat(subject, options.evaluation.max_new_tokens)


if __name__ == "__main__":
    run_command(main)
