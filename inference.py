"""Evaluates a model with and without its adapters (quality, routing locality, cache hits), or chats with it.

    torchrun --standalone --nproc_per_node=2 inference.py --model_name PATH --lora_save_path ADAPTER
    python inference.py --model_name PATH --use_lora False --dataset_name humaneval [--task_num 3]
    python inference.py --model_name PATH --lora_save_path ADAPTER --chat_mode True

The options of training are accepted too; most of them have no effect here.
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    from dwellmoe.interrupt import end_quietly_on_interrupt

    end_quietly_on_interrupt()
    from dwellmoe.launch import begin

    begin("dwellmoe.evaluation.command_line:parse_evaluation", "dwellmoe.evaluation.checks:check_evaluation")

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dwellmoe.cache.device import DeviceProfile, find_device
from dwellmoe.data.context import check_context, context_tokens
from dwellmoe.data.task import Task, load_task
from dwellmoe.errors import run_command
from dwellmoe.evaluation.answers.choices import choice_rows, task_of
from dwellmoe.evaluation.chat import chat
from dwellmoe.evaluation.conversation import conversation_of
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_fields, start_rerouting
from dwellmoe.evaluation.kept_batches import KeptBatches
from dwellmoe.evaluation.measure import (
    Measured,
    Workload,
    measure,
    one_after_the_other,
    with_texts_named,
    workload,
)
from dwellmoe.evaluation.merged_speed import merged_timings
from dwellmoe.evaluation.options import REROUTED, Options, parse_options
from dwellmoe.evaluation.prompt_mode import (
    answer_prompt,
    print_answer,
    rerouting_counts,
    verdict_on,
)
from dwellmoe.evaluation.ranks import Ranks, joined_ranks
from dwellmoe.evaluation.report.cache_rows import counted
from dwellmoe.evaluation.report.folder import (
    OTHER_FOLDER,
    check_json,
    check_outputs,
    choose_folder,
    results_folder,
)
from dwellmoe.evaluation.report.output import check_space, write_json_also, write_results
from dwellmoe.evaluation.report.report import SCHEMA_VERSION, build_report
from dwellmoe.evaluation.report.summary import print_answers, print_summary
from dwellmoe.evaluation.requests import (
    NEW_TOKENS,
    CutPrompt,
    Request,
    load_requests,
    prompt_ids,
    sample_spec_of,
)
from dwellmoe.evaluation.sandbox.run import check_sandbox
from dwellmoe.evaluation.text_lengths import text_lengths
from dwellmoe.evaluation.unfinished import kept_batches, results_bytes, stoppable
from dwellmoe.evaluation.wording import asked_task, own_prompt, own_wording, trained_wordings
from dwellmoe.families.padding import depends_on_padding
from dwellmoe.folder_lock import only_writer
from dwellmoe.loading import BASE, active_variant, quiet
from dwellmoe.log import warn_once
from model_loader import load_evaluated_model


def parse(arguments: list[str]) -> Options:
    """The options of a command line. Raises UserError."""
    return parse_options(arguments)


def evaluate(options: Options, ranks: Ranks) -> None:
    """Measures every variant on the same requests; the first rank prints and writes the report."""
    settings = options.evaluation
    task = load_task(options.data.dataset_name, options.data.skip_faulty)
    if task.metric == "pass_at_1":
        check_sandbox(options.backends)
    device = find_device(settings.device_profile)
    folder = choose_folder(results_folder(options, task.name), options.fields())
    check_outputs(folder, settings.json)
    console = Console(stderr=settings.json == "-", quiet=not ranks.first, soft_wrap=True, highlight=False)
    with only_writer(folder, OTHER_FOLDER) if ranks.first else nullcontext():
        report = _evaluate_into(folder, options, device, ranks, console)
    if report:
        write_json_also(settings.json, report)
        print_summary(report, console)
        print_answers(report, console)
        console.print(f"report: {folder / 'report.html'}")


def _evaluate_into(
    folder: Path, options: Options, device: DeviceProfile, ranks: Ranks, console: Console
) -> dict[str, Any]:
    """The report, written into a folder; nothing on every rank but the first."""
    evaluated = load_evaluated_model(options)
    task = asked_task(options, evaluated.tokenizer)
    requests, work = load_work(options, task, evaluated)
    lengths = text_lengths(requests, work, evaluated, options.data.allow_beyond_context)
    check_space(folder, results_bytes(evaluated, requests, work, len(options.variants)))
    console.print(_what_is_measured(options, task, requests, work))
    if cut := lengths.remark(options.row_tokens(task, evaluated.model)):
        console.print(cut)
    kept = kept_batches(folder, options, requests, work, ranks)
    with stoppable(kept, console):
        measured, engine_rows = _measure_variants(options, evaluated, work, ranks, kept)
    if not ranks.first:
        return {}
    measured = with_texts_named(measured, requests, chat_template=bool(task.chat))
    report = build_report(
        options=options,
        task=task,
        evaluated=evaluated,
        device=device,
        requests=requests,
        new_tokens=work.max_new_tokens,
        lengths=lengths,
        measured=measured,
        engine_rows=engine_rows,
    )
    write_results(folder, report, measured, requests, undisclosed=task.undisclosed)
    kept.remove()
    return report


def _measure_variants(
    options: Options, evaluated: EvaluatedModel, work: Workload, ranks: Ranks, kept: KeptBatches
) -> tuple[dict[str, Measured], list[dict]]:
    """Every variant as measured (on the first rank only), and what an offloading engine did for it."""
    measured: dict[str, Measured] = {}
    engine_rows = []
    for variant, rerouting in options.variants.items():
        engine = f"{variant}-engine-{ranks.rank}"
        # An engine counts over all batches of a variant: of an unfinished one none is found.
        usable = kept if options.engine is None or kept.get(engine) else replace(kept, resume=False)
        with active_variant(evaluated.model, variant.removesuffix(REROUTED)), counted(evaluated) as row:
            found = measure(evaluated, work, ranks, variant, rerouting=rerouting, kept=usable)
        measured |= {variant: found} if found else {}
        engine_rows += [{"variant": variant} | usable.get_or(engine, partial(dict, row))] if row else []
    merges = options.engine is None and not options.model.expert_format
    for variant in options.adapters if merges else ():
        with active_variant(evaluated.model, variant):
            timings = merged_timings(evaluated, work, ranks, variant)
        if variant in measured:
            measured[variant] = replace(measured[variant], merged_timings=timings)
    return measured, engine_rows


def load_work(options: Options, task: Task, evaluated: EvaluatedModel) -> tuple[list[Request], Workload]:
    """The requests of an evaluation, and what is measured of them, in batches."""
    settings = options.evaluation
    tokenizer = evaluated.tokenizer
    sample_spec = sample_spec_of(settings, task, options.row_tokens(task, evaluated.model))
    requests = load_requests(task, settings.split, tokenizer, sample_spec, seed=options.seed)
    choices = choice_rows(
        task, requests, tokenizer, max_tokens=sample_spec.row_tokens, limit=settings.choice_limit
    )
    work = workload(
        requests,
        choices,
        batch_size=_batch_size(settings.eval_batch_size, evaluated),
        generate_limit=sample_spec.generated,
        max_new_tokens=sample_spec.new_tokens,
        stop=task.stop,
        free_running=options.free_running,
    )
    return requests, one_after_the_other(work) if options.rerouting or options.engine else work


def _batch_size(wanted: int, evaluated: EvaluatedModel) -> int:
    """Requests a batch: one where padding would change what is measured, which is said."""
    if wanted == 1 or not depends_on_padding(evaluated.model):
        return wanted
    warn_once(
        f"measured one request at a time, not {wanted} (--eval_batch_size): the sparse attention of this "
        "model gives other logits to a request that is padded"
    )
    return 1


def _what_is_measured(options: Options, task: Task, requests: Sequence[Request], work: Workload) -> str:
    generated, ranked = (sum(map(len, batches)) for batches in (work.generated, work.choices))
    free = work.free_running
    written = f"as many texts of at most {free.tokens} tokens (--free_running), " if free else ""
    return (
        f"{task.name}, {options.evaluation.split}: {len(requests)} requests (--limit, --limit_evaluation), "
        f"{generated} answers generated with at most {work.max_new_tokens} tokens (--generate_limit, "
        f"--max_new_tokens), {written}{ranked} other choices ranked (--choice_limit); variants: "
        f"{', '.join(options.variants)}"
    )


def answer_one(options: Options) -> None:
    """Answers one request or prompt with the tuned variant, if there is one, and prints what that took."""
    settings = options.evaluation
    check_json(settings.json)
    evaluated = load_evaluated_model(options)
    console = Console(stderr=settings.json == "-", soft_wrap=True)
    with active_variant(evaluated.model, _chosen_variant(options)):
        evaluated = _rerouted(evaluated, options)
        answer = _answer_input if settings.input is not None else _answer_request
        found, undisclosed = answer(options, evaluated)
    if rerouting := options.rerouting:
        found["rerouting"] = rerouting_fields(rerouting, evaluated) | rerouting_counts(
            evaluated, rerouting.strategy
        )
    print_answer(found, console, undisclosed)
    write_json_also(settings.json, {"schema_version": SCHEMA_VERSION, "settings": options.fields()} | found)


def _answer_input(options: Options, evaluated: EvaluatedModel) -> tuple[dict, bool]:
    settings = options.evaluation
    named = "dataset_name" in options.given
    task = load_task(options.data.dataset_name, options.data.skip_faulty) if named else None
    wording = own_wording(options, evaluated.tokenizer)
    prompt = own_prompt(wording, settings.input or "", evaluated.tokenizer, must_fit=named)
    new_tokens = settings.max_new_tokens or (task and task.answer_tokens) or NEW_TOKENS
    return _answer(
        options,
        evaluated,
        prompt_ids(evaluated.tokenizer, prompt, options.data.max_words_len),
        new_tokens,
        stop=task.stop if task and not wording.chat_template else (),
    ), False


def _answer(
    options: Options,
    evaluated: EvaluatedModel,
    prompt: CutPrompt,
    new_tokens: int,
    stop: Sequence[str],
) -> dict:
    """The answer to a prompt, and what that took. Raises UserError for one beyond the model's context."""
    check_context(
        "the prompt with its answer",
        [len(prompt.ids) + new_tokens - 1],
        context_tokens(evaluated.model.config),
        options.data.allow_beyond_context,
    )
    found = answer_prompt(evaluated, prompt.ids, new_tokens, policies=options.policies, stop=stop)
    return found | {"cut_prompt_tokens": prompt.cut_tokens}


def _answer_request(options: Options, evaluated: EvaluatedModel) -> tuple[dict, bool]:
    """The answer to request --task_num, and whether its text may not be shown."""
    settings = options.evaluation
    task = asked_task(options, evaluated.tokenizer)
    one = replace(settings, limit=1, limit_start=settings.task_num, task_num=None)
    sample_spec = sample_spec_of(one, task, options.row_tokens(task, evaluated.model))
    (request,) = load_requests(
        task,
        settings.split,
        evaluated.tokenizer,
        sample_spec,
        seed=options.seed,
    )
    prompt = CutPrompt(request.prompt_ids, request.cut_prompt_tokens)
    found = _answer(options, evaluated, prompt, sample_spec.new_tokens, stop=task.stop)
    found["verdict"] = verdict_on(request, task_of(task, request.example), found["answer"], options.backends)
    return found | ({"answer": None} if task.undisclosed else {}), task.undisclosed


def chat_with(options: Options) -> None:
    """Chats with the tuned variant, if there is one, until the input ends."""
    settings = options.evaluation
    evaluated = load_evaluated_model(options)
    new_tokens = settings.max_new_tokens or NEW_TOKENS
    conversation = conversation_of(options, evaluated, new_tokens)
    with active_variant(evaluated.model, _chosen_variant(options)):
        chat(
            _rerouted(evaluated, options),
            conversation,
            new_tokens,
            lines=sys.stdin.buffer,
            temperature=settings.temperature or 0.0,
        )


def _chosen_variant(options: Options) -> str:
    return "tuned" if "tuned" in options.adapters else BASE


def _rerouted(evaluated: EvaluatedModel, options: Options) -> EvaluatedModel:
    rerouting = options.rerouting
    return replace(evaluated, rerouting=start_rerouting(rerouting, evaluated)) if rerouting else evaluated


def main() -> None:
    options = parse(sys.argv[1:])
    quiet()
    trained_wordings(options)  # a damaged one is named before a model is loaded
    settings = options.evaluation
    if settings.task_num is not None or settings.input is not None:
        answer_one(options)
    elif settings.chat_mode:
        chat_with(options)
    else:
        with joined_ranks() as ranks:
            evaluate(options, ranks)


if __name__ == "__main__":
    run_command(main)
