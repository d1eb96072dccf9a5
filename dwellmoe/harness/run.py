"""Runs tasks of the harness on every variant of a model; what is finished is kept until all is written."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from rich.console import Console

from dwellmoe.cache.budget import layer_slots
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.data.download import file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_fields, start_rerouting
from dwellmoe.evaluation.kept_batches import PREFIX, KeptBatches
from dwellmoe.evaluation.load import load_with_adapters
from dwellmoe.evaluation.options import REROUTED
from dwellmoe.evaluation.report.cache_rows import counted
from dwellmoe.evaluation.rerouting import ReroutingSettings
from dwellmoe.evaluation.unfinished import stoppable
from dwellmoe.folder_lock import only_writer
from dwellmoe.harness.command_line import OTHER_FOLDER, HarnessOptions
from dwellmoe.harness.recording_model import RecordingModel
from dwellmoe.harness.report import print_report, task_rows, write_report
from dwellmoe.harness.tasks import find_tasks, naming
from dwellmoe.loading import ADAPTER_WEIGHTS, active_variant, load_config
from dwellmoe.offload import engine_of
from dwellmoe.offload.io.fingerprint import checkpoint_fingerprint
from dwellmoe.settings.model import DTYPES, ModelSettings

PASSED_ON = (
    *("num_fewshot", "limit", "apply_chat_template", "system_instruction", "gen_kwargs", "log_samples"),
    *("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"),
    "confirm_run_unsafe_code",
)
"""Options that the harness takes by the same names."""
simple_evaluate: Any = lm_eval.simple_evaluate
"""Its decorator hides its type."""


def run_harness(options: HarnessOptions) -> None:
    """Runs every task on every variant, prints the scores and writes the results. Raises UserError."""
    console = Console(stderr=options.harness.json == "-", soft_wrap=True, highlight=False)
    manager = find_tasks(options.tasks, options.harness.include_path)
    evaluated = load_with_adapters(
        _typed_as_stored(options.evaluation.model),
        options.evaluation.engine,
        options.evaluation.adapters,
        allow_other_base=options.harness.allow_other_base,
    )
    folder = options.folder()
    with only_writer(folder, OTHER_FOLDER):
        kept = _kept(folder, options)
        with stoppable(kept, console):
            ran = list(_run_all(options, evaluated, manager, kept))
        report = _report(options, evaluated, ran)
        write_report(folder, report, ran, options.harness.json)
        kept.remove()
    print_report(report, console)
    console.print(f"results: {folder}")


def _typed_as_stored(settings: ModelSettings) -> ModelSettings:
    """With `--dtype auto` the checkpoint's own number type, as the harness itself takes it, for equal scores;
    other commands compute in float32 on a CPU.
    """
    stored = str(load_config(settings).get_text_config().dtype).removeprefix("torch.")
    return replace(settings, dtype=stored) if settings.dtype == "auto" and stored in DTYPES else settings


def _kept(folder: Path, options: HarnessOptions) -> KeptBatches:
    """Where finished tasks are kept until all are."""
    kept = KeptBatches(folder / f"{PREFIX}{digest(_identity(options))}", options.harness.resume)
    kept.make_folder()
    return kept


def _identity(options: HarnessOptions) -> dict[str, Any]:
    """What makes two runs the same."""
    adapters = options.evaluation.adapters
    own = Path(options.harness.include_path).rglob("*") if options.harness.include_path else ()
    return {
        **options.fields(),
        "tasks": None,  # each is kept by its name
        "model weights": checkpoint_fingerprint(options.evaluation.model.model_name),
        "adapter weights": {
            name: file_sha256(Path(path) / ADAPTER_WEIGHTS) for name, path in adapters.items()
        },
        "own files": {str(path): file_sha256(path) for path in sorted(own) if path.is_file()},
        "versions": {package: version(package) for package in ("lm_eval", "torch", "transformers", "peft")},
    }


def _run_all(
    options: HarnessOptions, evaluated: EvaluatedModel, manager: TaskManager, kept: KeptBatches
) -> Iterator[dict[str, Any]]:
    for variant, rerouting in options.evaluation.variants.items():
        for name in options.tasks:
            run = partial(_run_task, options, evaluated, manager, variant, rerouting, name)
            yield kept.get_or(f"{variant}-{digest(name)}", run)


def _run_task(
    options: HarnessOptions,
    evaluated: EvaluatedModel,
    manager: TaskManager,
    variant: str,
    rerouting: ReroutingSettings | None,
    name: str,
) -> dict[str, Any]:
    """One named task, or group, on one variant, from cold caches on: results of the harness, as JSON, and
    what was recorded of each of its tasks.
    """
    with active_variant(evaluated.model, variant.removesuffix(REROUTED)), counted(evaluated) as engine_row:
        cached = start_rerouting(rerouting, evaluated) if rerouting else None
        model = RecordingModel(
            replace(evaluated, rerouting=cached), options.batch_size, options.harness.max_length
        )
        with naming(name):
            results = simple_evaluate(model, tasks=[name], task_manager=manager, **_passed_on(options))
    tallies = _tallies(cached.tallies, model.requests_of) if cached else {}
    return {
        "variant": variant,
        "name": name,
        "results": json.dumps(results, default=handle_non_serializable, ensure_ascii=False),
        "traces": model.recorded(),
        "tallies": tallies,
        "engine": json.dumps(engine_row) if engine_row else None,
    }


def _passed_on(options: HarnessOptions) -> dict[str, Any]:
    harness = options.harness
    found = {name: getattr(harness, name) for name in PASSED_ON}
    if harness.fewshot_as_multiturn is not None:
        found["fewshot_as_multiturn"] = harness.fewshot_as_multiturn
    return found


def _tallies(
    of_requests: Mapping[int, np.ndarray], requests_of: Mapping[str, list[int]]
) -> dict[str, np.ndarray]:
    """Task -> what its requests add up to."""
    return {
        task: np.sum([of_requests[request] for request in requests], axis=0)
        for task, requests in requests_of.items()
    }


def _report(options: HarnessOptions, evaluated: EvaluatedModel, ran: list[dict[str, Any]]) -> dict[str, Any]:
    rerouting = options.evaluation.rerouting
    return {
        "settings": options.fields(),
        "model": evaluated.fields(),
        "harness": {"package": "lm_eval", "version": version("lm_eval"), "batch_size": options.batch_size},
        "rerouting": rerouting and rerouting_fields(rerouting, evaluated),
        "variants": list(options.evaluation.variants),
        "tasks": [row for found in ran for row in _rows(options, evaluated, found)],
        "engine": [
            {"variant": found["variant"], "task": found["name"], **json.loads(found["engine"])}
            for found in ran
            if found["engine"]
        ],
    }


def _rows(options: HarnessOptions, evaluated: EvaluatedModel, found: dict[str, Any]) -> list[dict[str, Any]]:
    engine = engine_of(evaluated.model)

    def capacity_of(trace: RoutingTrace) -> int:
        return engine.budget.capacity if engine else layer_slots(trace, options.expert_budget)

    return task_rows(
        found, options.policies, capacity_of, options.harness.bootstrap_samples, evaluated.expert_bytes
    )
