"""Tasks of the harness by name: found, and loaded with their data, before any model is."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import datasets
from lm_eval.tasks import TaskManager

from dwellmoe.data.remote import hub_answers
from dwellmoe.errors import UserError, first_line
from dwellmoe.harness.command_line import unknown_task

NETWORK = (
    "ConnectionError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectTimeout",
)
"""Names of errors, also of causes of errors, that say that the hub was not reached."""


def find_tasks(names: Sequence[str], include_path: str | None) -> TaskManager:
    """The harness's tasks and those of a folder, after a look at those that are wanted.

    UserError for an unknown name, a task file that is wrong, and data that cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            raise unknown_task(name, manager.all_tasks, include_path)
    for name in names:
        with naming(name):
            manager.load([name])
    return manager


@contextmanager
def naming(task: str) -> Iterator[None]:
    """Turns what the harness, or a task's own code, raises into a UserError that names the task."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--tasks {task}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    if _names(error) & {*NETWORK} and not hub_answers():
        return (
            f"its data set is on the hub, which does not answer: {first_line(error)}; a task file of your "
            "own with local "
            "data files (--include_path) needs no network"
        )
    return f"{type(error).__name__}: {first_line(error)}"


def _names(error: BaseException | None) -> set[str]:
    """Types of an error and of what caused it."""
    found: set[str] = set()
    while error is not None and len(found) < 50:
        found |= {kind.__name__ for kind in type(error).__mro__}
        error = error.__cause__ or error.__context__
    return found
