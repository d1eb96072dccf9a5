"""What can go wrong with a checkpoint and its disk: an error that says so, never a wrong token, and an
engine that goes on.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.offload import EngineSettings, ReadFault, Storage, load_with_cache
from dwellmoe.offload.io.readers import Readers
from dwellmoe.offload.io.shards import PACKING, find_shards
from dwellmoe.offload.pack import pack
from tests.tiny_models import tiny_model

SETTINGS = EngineSettings(expert_budget="3", readers=2, prefill_buffer=2)
PROMPT = torch.tensor([[5, 9, 17, 33, 2, 60]])
NEW_TOKENS = 6
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A random OLMoE in many shards."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_model("olmoe", eos_token_id=None).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """Logits of the resident model at each new token."""
    return generate(tiny_model("olmoe", eos_token_id=None))


@pytest.fixture
def ctrl_c():
    """Ctrl-C interrupts, also where the tests run in the background of a shell, which ignores it."""
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, kept)


@pytest.fixture
def broken(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def generate(model) -> torch.Tensor:
    found = model.generate(
        PROMPT,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        use_cache=True,
    )
    return torch.stack(found.logits)


def expert_shard(folder: Path) -> Path:
    """A shard that holds routed experts."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    return folder / next(file for key, file in weight_map.items() if ".experts." in key)


class FaultyDisk:
    """`os.preadv` that misbehaves at the reads of given numbers (0 is the first after `arm`)."""

    def __init__(self, fault: Callable[[int, list, int], int]) -> None:
        self.fault, self.when, self.reads = fault, frozenset(), 0
        self._lock = threading.Lock()

    def arm(self, *when: int) -> None:
        self.when, self.reads = frozenset(when), 0

    def __call__(self, file: int, memory: list, offset: int) -> int:
        with self._lock:
            faulty = self.reads in self.when
            self.reads += 1
        return self.fault(file, memory, offset) if faulty else os.preadv(file, memory, offset)


def fails(*_arguments) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def is_short(file: int, memory: list, offset: int) -> int:
    return os.preadv(file, memory, offset) // 2


def has_ended(*_arguments) -> int:
    return 0


def has_no_memory(*_arguments) -> int:
    raise MemoryError


def is_slow(file: int, memory: list, offset: int) -> int:
    time.sleep(0.02)
    return os.preadv(file, memory, offset)


def is_interrupted(file: int, memory: list, offset: int) -> int:
    """Ctrl-C while the computation waits for this read."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(0.05)
    return os.preadv(file, memory, offset)


def load_on(disk: FaultyDisk, folder: Path, settings: EngineSettings = SETTINGS):
    return load_with_cache(str(folder), settings, storage=Storage(find_shards(str(folder)).paths, read=disk))


def reader_threads() -> set[threading.Thread]:
    """Also of engines that earlier tests keep."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("expert-reader")}


EVERY_READ = range(10_000)
AFTER_THE_PROMPT = range(40, 10_000)


@pytest.mark.parametrize("fault", [fails, is_short, has_ended])
@pytest.mark.parametrize("when", [EVERY_READ, AFTER_THE_PROMPT], ids=["prefill", "decode"])
def test_a_disk_that_fails_is_named_and_the_next_request_is_right(checkpoint, expected, fault, when):
    disk = FaultyDisk(fault)
    model, engine = load_on(disk, checkpoint)
    with engine:
        disk.arm(*when)
        with pytest.raises(ReadFault, match=r"model-\d+-of-\d+\.safetensors: expert \d+ .* offset \d+"):
            generate(model)
        disk.arm()
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fault", [fails, is_short, has_ended, is_slow])
def test_a_disk_that_recovers_costs_no_token(checkpoint, expected, fault):
    disk = FaultyDisk(fault)
    model, engine = load_on(disk, checkpoint)
    with engine:
        disk.arm(*range(0, 10_000, 7))
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [SETTINGS, EngineSettings("3", prefetch_budget=2, ram_budget="12")])
def test_faults_at_random_never_make_a_wrong_token(checkpoint, expected, settings):
    draw = random.Random(0)
    faults = [fails, is_short, has_ended] * 2 + [has_no_memory]
    disk = FaultyDisk(lambda *read: draw.choice(faults)(*read))
    model, engine = load_on(disk, checkpoint, settings)
    broke = 0
    with engine:
        for _ in range(12):
            disk.arm(*draw.sample(range(60), 4))
            try:
                torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)
            except (ReadFault, MemoryError):
                broke += 1
    assert broke < 12


def test_no_memory_for_a_read_leaves_the_engine_whole(checkpoint, expected):
    disk = FaultyDisk(has_no_memory)
    model, engine = load_on(disk, checkpoint)
    with engine:
        disk.arm(3)
        with pytest.raises(MemoryError):
            generate(model)
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("read", [1, 45], ids=["prefill", "decode"])
def test_ctrl_c_ends_a_request_and_nothing_else(checkpoint, expected, ctrl_c, read):
    disk, others = FaultyDisk(is_interrupted), reader_threads()
    model, engine = load_on(disk, checkpoint)
    with engine:
        disk.arm(read)
        with pytest.raises(KeyboardInterrupt):
            generate(model)
        assert len(reader_threads() - others) == SETTINGS.readers
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)
    assert not reader_threads() - others


def test_ctrl_c_before_the_reads_begin_leaves_nothing_to_wait_for(checkpoint, expected, ctrl_c, monkeypatch):
    model, engine = load_with_cache(str(checkpoint), SETTINGS)
    with engine:
        with monkeypatch.context() as patched:
            patched.setattr(Readers, "submit", lambda *_: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                generate(model)
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)


def test_a_full_disk_leaves_nothing_that_runs(checkpoint, tmp_path):
    """The limit on a file's size stands for the disk's."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, kept[1]))
    try:
        with pytest.raises(UserError, match="cannot be written: File too large"):
            pack(str(checkpoint), tmp_path / "pack")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert [path.name for path in (tmp_path / "pack").iterdir()] == [PACKING]
    pack(str(checkpoint), tmp_path / "pack")
    assert not (tmp_path / "pack" / PACKING).exists()


def test_a_shard_that_changes_while_in_use_is_refused(broken):
    model, engine = load_with_cache(str(broken), SETTINGS)
    with engine:
        generate(model)
        for path in broken.glob("*.safetensors"):
            os.truncate(path, path.stat().st_size // 2)
        engine.reset()
        with pytest.raises(ReadFault, match="the file changed"):
            generate(model)


def test_a_truncated_shard_is_refused_when_loading(broken):
    shard = expert_shard(broken)
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(UserError, match=f"{shard.name}: truncated"):
        load_with_cache(str(broken), SETTINGS)


def test_a_shard_that_is_cut_off_in_its_header_is_refused(broken):
    os.truncate(expert_shard(broken), 20)
    with pytest.raises(UserError, match=expert_shard(broken).name):
        load_with_cache(str(broken), SETTINGS)


def test_a_missing_shard_is_named(broken):
    shard = expert_shard(broken)
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}"):
        load_with_cache(str(broken), SETTINGS)


def test_a_tensor_that_the_index_promises_and_the_shard_lacks_is_named(broken):
    shard = expert_shard(broken)
    tensors = load_file(shard)
    lost = next(key for key in tensors if ".experts." in key)
    del tensors[lost]
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(UserError, match=f"{shard.name}.*{lost}"):
        load_with_cache(str(broken), SETTINGS)


def test_an_expert_that_is_nowhere_is_missed(broken):
    shard, index = expert_shard(broken), json.loads((broken / INDEX).read_text())
    tensors = load_file(shard)
    lost = next(key for key in tensors if ".experts." in key)
    del tensors[lost], index["weight_map"][lost]
    save_file(tensors, shard, {"format": "pt"})
    (broken / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="7 of 8 experts"):
        load_with_cache(str(broken), SETTINGS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": 3}', '{"metadata": {}}'])
def test_a_corrupt_index_is_refused(broken, text):
    (broken / INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index"):
        load_with_cache(str(broken), SETTINGS)


def test_a_shard_that_may_not_be_read_is_named(checkpoint, monkeypatch):
    shard, really_open = expert_shard(checkpoint), os.open

    def refuse(path, *arguments, **options):
        if Path(path).name == shard.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really_open(path, *arguments, **options)

    monkeypatch.setattr("dwellmoe.offload.io.storage.os.open", refuse)
    with pytest.raises(UserError, match=f"{shard.name}.*Permission denied"):
        Storage(find_shards(str(checkpoint)).paths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_budget": "1"}, "needs 2 of 8 experts"),
        ({"expert_budget": "10%"}, "expert_budget"),
        ({"expert_budget": "1000B"}, "expert_budget"),
        ({"expert_budget": "much"}, "expert_budget much"),
        ({"decode_policy": "opt"}, "opt.*future"),
        ({"prefill_policy": "lopt:horizon=3"}, "lopt.*future"),
        ({"decode_policy": "lry"}, "lry.*choose from.*lru"),
        ({"prefill_handoff": "later"}, "later.*choose from.*recent"),
        ({"prefill_handoff": "recent:tokens=0"}, "out of range"),
        ({"io": "slow"}, "direct, buffered"),
        ({"readers": 0}, "readers"),
        ({"prefill_buffer": 0}, "prefill_buffer"),
        ({"prefetch_budget": -1}, "prefetch_budget"),
        ({"ram_budget": "big"}, "ram_budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(checkpoint, settings, message):
    before = reader_threads()
    with pytest.raises(UserError, match=message):
        load_with_cache(str(checkpoint), EngineSettings(**settings))
    assert reader_threads() <= before


def test_a_router_that_gives_no_numbers_is_an_error_and_the_next_request_is_right(checkpoint, expected):
    model, engine = load_with_cache(str(checkpoint), SETTINGS)
    router: Any = model.get_submodule(engine.layers[1].router)
    with engine:
        kept = router.weight.detach().clone()
        router.weight.data.fill_(torch.nan)
        with pytest.raises(UserError, match="router of MoE layer 1"):
            generate(model)
        router.weight.data.copy_(kept)
        torch.testing.assert_close(generate(model), expected, rtol=0, atol=1e-5)


def test_two_engines_share_a_checkpoint(checkpoint, expected):
    first, one = load_with_cache(str(checkpoint), SETTINGS)
    second, other = load_with_cache(str(checkpoint), SETTINGS)
    with one, other:
        torch.testing.assert_close(generate(first), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(generate(second), expected, rtol=0, atol=1e-5)
