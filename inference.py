"""Evaluates a model with and without its adapters: quality, locality, cache hits; or chats with it.

    torchrun --standalone --nproc_per_node=2 inference.py --model_name PATH --lora_save_path ADAPTER
    python inference.py --model_name PATH --use_lora False --dataset_name humaneval [--task_num 3]

Takes the options of training, of which most have no effect here, and those of EvaluationSettings.
"""

from dwellmoe.launch import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()  # before the imports below, which take seconds

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from config import TrainSettings
from dwellmoe.cache.device import DeviceProfile
from dwellmoe.data.task import Task, load_task
from dwellmoe.errors import run_command
from dwellmoe.evaluation.answers.choices import choice_rows, task_of
from dwellmoe.evaluation.chat import chat
from dwellmoe.evaluation.chat_template import asked_in_chat, chat_task
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.measure import Measured, Workload, measure, one_after_the_other, workload
from dwellmoe.evaluation.options import Options, parse_options
from dwellmoe.evaluation.prompt_mode import (
    answer_alone,
    own_prompt,
    print_alone,
    rerouting_counts,
    verdict_on,
)
from dwellmoe.evaluation.ranks import Ranks, joined_ranks
from dwellmoe.evaluation.report.cache_rows import policy_list
from dwellmoe.evaluation.report.console import print_answers, print_summary
from dwellmoe.evaluation.report.engine_rows import counted
from dwellmoe.evaluation.report.output import write_also, write_results
from dwellmoe.evaluation.report.quality import quality_row
from dwellmoe.evaluation.report.report import SCHEMA_VERSION, build_report
from dwellmoe.evaluation.report.rerouting_rows import REROUTED, rerouting_rows
from dwellmoe.evaluation.report.speed import device_note, find_device, speed_rows
from dwellmoe.evaluation.requests import Request, load_requests
from dwellmoe.evaluation.sample_spec import NEW_TOKENS, sample_spec_of
from dwellmoe.evaluation.sandbox.run import check_sandbox
from dwellmoe.evaluation.timing import speed_row
from dwellmoe.loading import BASE, active_variant, quiet
from model_loader import load_evaluated_model


def evaluate(options: Options, ranks: Ranks) -> None:
    """Measures every variant on the same requests; the first rank writes the report."""
    settings, task = options.evaluation, load_task(options.data.dataset_name)
    if task.metric == "pass_at_1":
        check_sandbox(options.backends)
    device = find_device(settings.device_profile)
    evaluated = load_evaluated_model(options)
    in_chat = asked_in_chat(settings.use_chat_template, task, evaluated.tokenizer)
    task = chat_task(task) if in_chat else task
    requests, work = _load_work(options, task, evaluated, in_chat)
    console = Console(stderr=settings.json == "-", quiet=not ranks.first, soft_wrap=True)
    console.print(_limits(options, task, requests, work), highlight=False)
    measured, engine_rows = {}, []
    for variant, setup in options.variants.items():
        with active_variant(evaluated.model, variant.removesuffix(REROUTED)), counted(evaluated) as row:
            measured[variant] = measure(evaluated, work, ranks, variant, setup)
        engine_rows += [{"variant": variant} | row] if row else []
    if ranks.first:
        report = _report(options, task, evaluated, device, requests, measured)
        report |= {"engine": engine_rows} if engine_rows else {}
        row_tokens = options.row_tokens(task, evaluated.model)
        report["data"] |= {"in_chat": in_chat, "row_tokens": row_tokens, "new_tokens": work.max_new_tokens}
        folder = write_results(_wanted_folder(options, task), report, measured, requests, task.undisclosed)
        write_also(settings.json, report)
        print_summary(report, console)
        print_answers(report, console)
        console.print(f"report: {folder / 'report.html'}", highlight=False)


def _load_work(
    options: Options, task: Task, evaluated: EvaluatedModel, in_chat: bool
) -> tuple[list[Request], Workload]:
    settings = options.evaluation
    sample_spec = sample_spec_of(settings, task, options.row_tokens(task, evaluated.model))
    requests = load_requests(task, settings.split, evaluated.tokenizer, sample_spec, options.seed, in_chat)
    choices = choice_rows(task, requests, evaluated.tokenizer, sample_spec.row_tokens, settings.choice_limit)
    generated = sample_spec.answered, sample_spec.new_tokens, task.stop
    work = workload(requests, choices, settings.eval_batch_size, *generated)
    return requests, one_after_the_other(work) if options.virtual or options.engine else work


def _limits(options: Options, task: Task, requests: Sequence[Request], work: Workload) -> str:
    settings = options.evaluation
    answered, ranked = (sum(map(len, batches)) for batches in (work.generated, work.choices))
    return (
        f"{task.name}, {settings.split}: {len(requests)} requests (--limit, --limit_evaluation), {answered} "
        f"answered with at most {work.max_new_tokens} tokens (--generate_limit, --max_new_tokens), {ranked} "
        f"other choices ranked (--choice_limit); variants: {', '.join(options.variants)}"
    )


def _report(
    options: Options,
    task: Task,
    evaluated: EvaluatedModel,
    device: DeviceProfile,
    requests: Sequence[Request],
    measured: dict[str, Measured],
) -> dict:
    resamples = options.evaluation.bootstrap_samples
    backends = options.backends
    rows = [quality_row(name, task, requests, found, resamples, backends) for name, found in measured.items()]
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
        "model": evaluated.fields(),
        "data": data,
        "device": dataclasses.asdict(device) | {"about": device_note(device)},
    }
    rerouting = []
    if setup := options.virtual:
        rows_found = rerouting_rows(measured, setup.strategy, evaluated.expert_bytes, resamples)
        rerouting = [row | setup.fields(evaluated) for row in rows_found]
    report = build_report(options.fields(), about, measured, rows, rerouting)
    report["measured_speed"] = [speed_row(name, found.timings) for name, found in measured.items()]
    return report | {"speed": speed_rows(device, measured, report["cache"], evaluated.resident_bytes)}


def _wanted_folder(options: Options, task: Task) -> Path:
    if options.evaluation.results_dir:
        return Path(options.evaluation.results_dir)
    names = [_label(Path(path)) for path in options.adapters.values()] or [BASE]
    return Path(f"./results{options.model.model_key}") / "-".join([task.name, *names])


def answer_one(options: Options) -> None:
    """Answers one request or prompt with the tuned variant, if there is one, and prints what that took."""
    settings = options.evaluation
    evaluated = load_evaluated_model(options)
    console = Console(stderr=settings.json == "-", soft_wrap=True)
    own, setup = settings.input is not None, options.virtual
    with active_variant(evaluated.model, "tuned" if "tuned" in options.adapters else BASE):
        evaluated = _rerouted(evaluated, options)
        found, undisclosed = (_own if own else _numbered)(options, evaluated)
    if setup:
        found["rerouting"] = setup.fields(evaluated) | rerouting_counts(evaluated, setup.strategy)
    print_alone(found, console, undisclosed)
    write_also(settings.json, {"schema_version": SCHEMA_VERSION, "settings": options.fields()} | found)


def _rerouted(evaluated: EvaluatedModel, options: Options) -> EvaluatedModel:
    setup = options.virtual
    return dataclasses.replace(evaluated, virtual=setup.cache(evaluated) if setup else None)


def _own(options: Options, evaluated: EvaluatedModel) -> tuple[dict, bool]:
    settings, tokens = options.evaluation, options.data.max_words_len
    prompt = own_prompt(settings.input or "", evaluated, settings.use_chat_template, tokens)
    policies = policy_list(settings.policies)
    return answer_alone(evaluated, prompt, settings.max_new_tokens or NEW_TOKENS, (), policies), False


def _numbered(options: Options, evaluated: EvaluatedModel) -> tuple[dict, bool]:
    settings, task = options.evaluation, load_task(options.data.dataset_name)
    in_chat = asked_in_chat(settings.use_chat_template, task, evaluated.tokenizer)
    task = chat_task(task) if in_chat else task
    one = dataclasses.replace(settings, limit=1, limit_start=settings.task_num, task_num=None)
    sample_spec = sample_spec_of(one, task, options.row_tokens(task, evaluated.model))
    request = load_requests(task, settings.split, evaluated.tokenizer, sample_spec, options.seed, in_chat)[0]
    policies = policy_list(settings.policies)
    found = answer_alone(evaluated, request.prompt_ids, sample_spec.new_tokens, task.stop, policies)
    found["verdict"] = verdict_on(request, task_of(task, request.example), found["answer"], options.backends)
    return found | ({"answer": None} if task.undisclosed else {}), task.undisclosed


def _label(adapter: Path) -> str:
    """An adapter's folder name; of a checkpoint with the name of its run."""
    path = adapter.resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def parse(arguments: list[str]) -> Options:
    """The options of a command line. Raises UserError."""
    return parse_options(arguments, __doc__ or "", TrainSettings)


def main() -> None:
    options = parse(sys.argv[1:])
    quiet()
    if options.evaluation.task_num is not None or options.evaluation.input is not None:
        answer_one(options)
        return
    if not options.evaluation.chat_mode:
        with joined_ranks() as ranks:
            evaluate(options, ranks)
        return
    evaluated = load_evaluated_model(options)
    with active_variant(evaluated.model, "tuned" if "tuned" in options.adapters else BASE):
        settings = options.evaluation
        evaluated = _rerouted(evaluated, options)
        chat(evaluated, settings.max_new_tokens or NEW_TOKENS, temperature=settings.temperature)


if __name__ == "__main__":
    run_command(main)
