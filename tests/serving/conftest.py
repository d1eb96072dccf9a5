"""A tiny model with two adapters, served out of a cache of two experts a layer."""

import pytest

from dwellmoe.data.wording import Wording
from tests.evaluation.workspace import make_workspace

TEMPLATE = (
    "{% if tools %}w80 {% endif %}{% if enable_thinking %}w81 {% endif %}{% for m in messages %}"
    "{{ {'user': 'w90', 'assistant': 'w91', 'system': 'w92'}[m['role']] }} {{ m['content'] }} {% endfor %}w91"
)
QUESTIONS = Wording("questions", "w7 {question} w8", " {reply}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`model/` with a chat template; `tuned/checkpoint-10/`; `control/`, which was trained on questions."""
    made = make_workspace(tmp_path_factory.mktemp("serving"))
    (made / "model" / "chat_template.jinja").write_text(TEMPLATE)
    QUESTIONS.save(made / "control")
    return made


@pytest.fixture(scope="session")
def served(folder):
    from dwellmoe.cli.serve import parse_options
    from dwellmoe.serving.served_model import load_served_model

    adapters = f"--adapter tuned={folder}/tuned/checkpoint-10 --adapter {folder}/control"
    cache = "--expert_budget 2 --prefill_buffer 2 --readers 2"
    found = load_served_model(parse_options(f"{folder}/model {adapters} {cache} --dtype float32".split()))
    yield found
    found.engine.close()


@pytest.fixture
def service(served):
    from dwellmoe.serving.app import Service
    from dwellmoe.serving.settings import ServingSettings

    made = Service(served, ServingSettings(max_waiting=2))
    yield made
    made.queue.end()


@pytest.fixture
def client(service):
    from starlette.testclient import TestClient

    from dwellmoe.serving.app import application

    with TestClient(application(service), raise_server_exceptions=False) as found:
        yield found
