"""Any number of ranks gives the same report; a dead rank ends the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.workspace import options

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def launch(ranks: int, script: str, *arguments: str, timeout: float = 580) -> subprocess.CompletedProcess:
    """`torchrun` on this machine with one thread a rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_gives_the_same_report(workspace, report, ranks, tmp_path):
    done = launch(ranks, "inference.py", *options(workspace, results_dir=tmp_path / "results"))
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "results" / "report.json").read_text())
    assert again | {"measured_speed": None} == report | {"measured_speed": None}


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
