"""What can be wrong with an evaluation and is found without torch: in a second, before anything is loaded."""

from pathlib import Path

from dwellmoe.adapter_folder import check_adapter_folder
from dwellmoe.base_model import check_base_model
from dwellmoe.cache.device import find_device
from dwellmoe.data.check_data import check_data
from dwellmoe.data.task import Task, load_task
from dwellmoe.evaluation.command_line import EvaluationOptions
from dwellmoe.evaluation.options import Options, check_options
from dwellmoe.evaluation.report.folder import (
    OTHER_FOLDER,
    check_json,
    check_outputs,
    choose_folder,
    results_folder,
)
from dwellmoe.evaluation.wording import trained_wordings
from dwellmoe.folder_lock import only_writer
from dwellmoe.model_folder import check_model_folder


def check_evaluation(parsed: EvaluationOptions) -> None:
    """Raises UserError for whatever is wrong with options, model, adapters, data or folder and is known by
    now.
    """
    options = Options._make(parsed)
    check_options(options)
    own_format = None if options.engine else options.model.expert_format
    check_model_and_adapters(options, options.adapter.allow_other_base, own_format)
    trained_wordings(options)
    settings = options.evaluation
    asks_own = settings.input is not None or settings.chat_mode
    if asks_own and "dataset_name" not in options.given:
        check_json(settings.json)
        return
    task = load_task(options.data.dataset_name, options.data.skip_faulty)
    if not asks_own:
        check_data(task, [settings.split])
    if asks_own or settings.task_num is not None:
        check_json(settings.json)
    else:
        _check_results(options, task)


def check_model_and_adapters(options: Options, allow_other_base: bool, expert_format: str | None) -> None:
    """Raises UserError for a model folder or adapter that is none, and for an adapter of another base.

    expert_format  in which the experts are held; None: as the checkpoint has them
    """
    model_name, adapters = options.model.model_name, options.adapters.values()
    check_model_folder(model_name)
    for path in adapters:
        check_adapter_folder(path)
    if Path(model_name).is_dir():
        check_base_model(adapters, model_name, allow_other_base, expert_format)


def _check_results(options: Options, task: Task) -> None:
    """UserError where the report cannot be written, or another process writes one there."""
    find_device(options.evaluation.device_profile)
    folder = choose_folder(results_folder(options, task.name), options.fields())
    check_outputs(folder, options.evaluation.json)
    with only_writer(folder, OTHER_FOLDER):
        pass
