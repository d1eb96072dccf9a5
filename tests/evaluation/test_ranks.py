"""Any number of ranks gives the same report; a dead rank ends the run."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.workspace import NOT_COMPARED, options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """`TMPDIR` is where torchrun leaves a folder of logs."""
    for name, value in {"OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, "TMPDIR": tmp_path}.items():
        monkeypatch.setenv(name, str(value))


def torchrun(ranks: int, script: str, *arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return [*launcher, script, *arguments]


def launch(ranks: int, script: str, *arguments: str, timeout: float = 580) -> subprocess.CompletedProcess:
    """`torchrun` on this machine with one thread a rank."""
    return subprocess.run(
        torchrun(ranks, script, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_any_number_of_ranks_goes_on_to_the_same_report_as_one(workspace, report, tmp_path):
    """Two that are killed, then three with what the two had measured."""
    arguments = options(workspace, results_dir=tmp_path / "results")
    killed = subprocess.Popen(torchrun(2, "inference.py", *arguments), cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 300
    kept = "results/unfinished-*/control-*.safetensors"
    while not list(tmp_path.glob(kept)) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "results" / "report.json").exists()
    done = launch(3, "inference.py", *arguments, "--resume", "True")
    assert done.returncode == 0, done.stderr
    assert int(re.findall(r"going on with (\d+) batches", done.stdout)[0]) >= 11, done.stdout
    again = json.loads((tmp_path / "results" / "report.json").read_text())
    assert again | NOT_COMPARED == report | NOT_COMPARED


def test_a_dead_rank_ends_the_run(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import os\n"
        "from dwellmoe.evaluation.ranks import joined_ranks\n"
        "with joined_ranks() as ranks:\n"
        "    if not ranks.first:\n"
        "        os._exit(9)\n"
        "    ranks.gather([(0, 'kept')])\n"
    )
    assert launch(2, str(script), timeout=120).returncode != 0


@pytest.mark.parametrize("fails", [False, True])
def test_ranks_part_at_the_end_whoever_joined_them(tmp_path, fails):
    script = tmp_path / "parts.py"
    script.write_text(
        "import torch.distributed as dist\n"
        "from dwellmoe.evaluation.ranks import joined_ranks\n"
        "dist.init_process_group('gloo')\n"
        "try:\n"
        "    with joined_ranks() as ranks:\n"
        "        ranks.gather([(ranks.rank, 'kept')])\n"
        f"        assert not {fails}, 'wanted'\n"
        "except AssertionError as error:\n"
        "    assert str(error) == 'wanted', error\n"
        "assert not dist.is_initialized()\n"
    )
    done = launch(2, str(script), timeout=120)
    assert done.returncode == 0, done.stderr
