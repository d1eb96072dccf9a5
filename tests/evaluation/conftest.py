"""What the tests of evaluation share: a workspace on disk, its loaded model, and one whole run."""

import json

import pytest
import torch

from tests.evaluation.workspace import make_workspace, options


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def one_thread():
    """Sums are then taken in the same order as under torchrun."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def evaluated(workspace, one_thread):
    from inference import parse
    from model_loader import load_evaluated_model

    return load_evaluated_model(parse(options(workspace)))


@pytest.fixture(scope="session")
def requests(workspace, evaluated):
    from dwellmoe.data.task import load_task
    from dwellmoe.evaluation.requests import SampleSpec, load_requests

    task = load_task(str(workspace / "task" / "task.toml"))
    return load_requests(task, "test", evaluated.tokenizer, SampleSpec(0, 3, 6, 64), 42)


@pytest.fixture(scope="session")
def run(workspace, one_thread):
    """The results folder of a whole run with one rank."""
    from dwellmoe.evaluation.ranks import Ranks
    from inference import evaluate, parse

    evaluate(parse(options(workspace, json=workspace / "copy.json")), Ranks())
    return workspace / "results"


@pytest.fixture(scope="session")
def report(run):
    return json.loads((run / "report.json").read_text())
