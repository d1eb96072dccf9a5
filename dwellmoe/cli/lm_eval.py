"""`dwellmoe lm-eval`: tasks of EleutherAI's harness on a model, with the routing of every task."""

import os

from dwellmoe.harness.command_line import check_harness, parse_harness


def run(words: list[str]) -> None:
    """Runs the tasks. UserError for a mistake, before the harness or torch is imported."""
    options = parse_harness(words)
    check_harness(options)
    _stay_offline()
    from dwellmoe.harness.run import run_harness
    from dwellmoe.loading import quiet

    quiet()
    run_harness(options)


def _stay_offline() -> None:
    """Spares the libraries their retries where the hub does not answer; they read what they have of it."""
    from dwellmoe.data.remote import hub_answers

    if not hub_answers():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
