"""What tests share: tiny checkpoints and data sets on disk, made once a session."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Read by the hub client when it is first imported: set later, it would wait for a hub that tests never ask.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tests.data.stand_ins import WORDS, word_tokenizer, words, write_task
from tests.session_folder import begin_session
from tests.warm_python import WarmPython

ROOT = Path(__file__).resolve().parent.parent
settings.register_profile("no deadline", deadline=None)  # no test may fail because a machine is busy
settings.load_profile("no deadline")


@pytest.fixture(autouse=True, scope="session")
def session_folders(tmp_path_factory):
    """What is made once a session lies where pytest deletes it."""
    begin_session(tmp_path_factory.mktemp("session"))


@pytest.fixture(autouse=True)
def same_random_numbers():
    """The numbers that a test draws do not depend on the tests before it."""
    random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A random OLMoE of 3 layers with a tokenizer, as a checkpoint folder."""
    from tests.tiny_models import tiny_model

    folder = tmp_path_factory.mktemp("tiny-olmoe")
    tiny_model("olmoe", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=2).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> Path:
    """The task file of a data set of 48 training and 8 validation and test examples each."""
    draw = random.Random(0)
    rows = [
        {"question": words(draw.randrange(80), 6), "reply": words(draw.randrange(80), 6)} for _ in range(64)
    ]
    return write_task(tmp_path_factory.mktemp("sentences"), a=rows[:48], b=rows[48:56], c=rows[56:])


@pytest.fixture(scope="module")
def browser():
    """A headless chromium: of one module, since its event loop is in the way of `asyncio.run`."""
    from tests.browser import chromium

    with chromium() as found:
        yield found


def quick_training(checkpoint: Path, task: Path) -> list[str]:
    """Options of a training run of 12 steps that saves and validates every fourth, into ./out."""
    return (
        f"--model_name {checkpoint} --dataset_name {task} --max_words_len 32 --batch_size 4 "
        "--lora_rank 2 --logging_steps 2 --eval_steps 4 --save_steps 4 --lora_save_path ./out --model_key _t"
    ).split()


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory):
    """Runs commands without the seconds that they take to import torch."""
    found = WarmPython(tmp_path_factory.mktemp("warm_python"))
    yield found
    found.end()


def command_environment(folder: Path, **more: str) -> dict[str, str]:
    """The variables of a command that runs in a folder of a test's own."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DWELLMOE_CACHE": str(folder / "cache"),
        **more,
    }


@pytest.fixture
def run_command(tmp_path, request):
    """Runs a command of the project in a folder of the test's own; gives the finished process.

    A script and `dwellmoe` itself run in a fork of `warm_python`; anything else, as launchers, starts anew.
    """

    def run(*command: object, timeout_seconds: int = 240, **environment: str) -> subprocess.CompletedProcess:
        line = [str(part) for part in command]
        variables = command_environment(tmp_path, **environment)
        forked = None
        if line[0] in ("python", sys.executable) and line[1].endswith(".py"):
            forked = line[1:]
        elif line[0] == "dwellmoe":
            forked = ["-m", *line]
        if forked:
            python = request.getfixturevalue("warm_python")
            return python.run(forked, tmp_path, variables, timeout_seconds)
        return subprocess.run(
            line,
            cwd=tmp_path,
            env=variables | {"TMPDIR": str(tmp_path)},  # in which torchrun leaves a folder of logs
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
        )

    return run


@pytest.fixture
def deepspeed():
    """The deepspeed command for two ranks, whose shared memory it leaves behind."""
    with socket.socket() as trial:
        trial.bind(("", 0))
        port = trial.getsockname()[1]
    yield ("deepspeed", "--num_accelerators", "2", "--master_port", str(port))
    for left in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
        left.unlink()
