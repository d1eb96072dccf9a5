"""Packed models: the same answers wherever they run, the same bytes however they were packed, and every
damaged byte found.
"""

import errno
import json
import os
import shutil
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dwellmoe.base_model import base_model, check_base_model
from dwellmoe.cli import pack as command
from dwellmoe.errors import UserError
from dwellmoe.experts.formats import format_of, parse_format, text_of
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.folder_lock import only_writer
from dwellmoe.loading import load_model
from dwellmoe.offload import ReadFault, Storage, load_with_cache, pack_records
from dwellmoe.offload.io.packed_check import damage, other_checks, record_checks
from dwellmoe.offload.io.packed_index import CONFIG, INDEX, read_index
from dwellmoe.offload.io.shards import PACKING, find_shards
from dwellmoe.offload.pack import pack
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings
from tests.conftest import command_environment
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.offload.workbench import checkpoint, engine_of, prompt
from tests.session_folder import session_folder
from tests.tiny_models import FAMILIES

FORMATS = ("as_stored", "int8", "int4:group=32", "nf4", "mxfp4")


@cache
def packed(folder: Path, format: str = "int4:group=32") -> Path:
    """A checkpoint in a format, packed once a session."""
    out = session_folder("packed")
    pack(str(folder), out, format, workers=2)
    return out


@pytest.fixture
def copy(tmp_path) -> Path:
    """A packed OLMoE of one's own."""
    return Path(shutil.copytree(packed(checkpoint("olmoe")), tmp_path / "copy"))


def logits(folder: Path, expert_format: str | None = None) -> torch.Tensor:
    """Of a model with all experts in memory."""
    with torch.no_grad():
        model = load_model(ModelSettings(str(folder), dtype="float32", expert_format=expert_format))
        return model(prompt(rows=2)).logits


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip(path: Path, offset: int, mask: int = 1) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def faults_of(folder: Path) -> list[str]:
    index, shards = read_index(str(folder)), find_shards(str(folder))
    return damage(shards, [*record_checks(shards, index), *other_checks(shards, index)])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
@pytest.mark.parametrize("format", FORMATS)
def test_it_gives_what_the_same_format_in_memory_gives(family, format):
    """Resident, and token by token out of a cache that holds two of eight experts."""
    folder = packed(checkpoint(family), format)
    expected = logits(checkpoint(family), None if format == "as_stored" else format)
    found = logits(folder)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    resident: Any = load_model(ModelSettings(str(folder), dtype="float32"))
    model, engine = engine_of(family, folder)
    with engine:
        assert engine.reads_per_expert == 1
        assert torch.equal(model.generate(prompt(), **options), resident.generate(prompt(), **options))


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_packs(family):
    found = logits(packed(checkpoint(family), "int8"))
    torch.testing.assert_close(found, logits(checkpoint(family), "int8"), atol=1e-6, rtol=1e-5)
    plain = logits(packed(checkpoint(family), "as_stored"))
    torch.testing.assert_close(plain, logits(checkpoint(family)), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["as_stored", "int4:group=32", "mxfp4"])
@pytest.mark.parametrize(
    "folder",
    [mxfp4_checkpoint, lambda: fp8_checkpoint("deepseek_v3"), lambda: fp8_checkpoint("mixtral")],
    ids=["mxfp4", "fp8-deepseek_v3", "fp8-mixtral"],
)
def test_published_low_bits_are_kept_or_brought_into_another_format(folder, format):
    found = logits(packed(folder(), format))
    torch.testing.assert_close(found, logits(folder(), format), atol=1e-6, rtol=1e-5)


def test_mxfp4_as_published_stays_as_it_is():
    """Also where that format is asked for: nothing is quantised twice."""
    kept, asked = (packed(mxfp4_checkpoint(), format) for format in ("as_stored", "mxfp4"))
    records = [name for name in content(kept) if name.startswith("packed-") and "00001-of" not in name]
    assert records
    for name in records:
        assert (kept / name).read_bytes() == (asked / name).read_bytes()


def test_it_is_an_ordinary_folder_of_safetensors_that_plain_transformers_refuses():
    folder = packed(checkpoint("olmoe"))
    assert not (folder / PACKING).exists()
    for path in folder.glob("*.safetensors"):
        assert load_file(path)
    source = load_file(checkpoint("olmoe") / "model.safetensors")
    others = load_file(min(folder.glob("*.safetensors")))
    assert others.keys() == {name for name in source if ".experts." not in name}
    assert all(torch.equal(others[name], source[name]) for name in others)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("format", ["int4:group=32", "as_stored"])
def test_bytes_do_not_depend_on_the_number_of_workers(format, tmp_path):
    for workers in (1, 3):
        pack(str(checkpoint("gpt_oss")), tmp_path / str(workers), format, workers)
    assert content(tmp_path / "1") == content(tmp_path / "3")


class Stopped(Exception):
    """What ends a run in the middle."""


def stop_after(monkeypatch, count: int, error: BaseException) -> None:
    """Has a run end when so many experts are written."""
    add = pack_records.Journal.add

    def counting(journal, flat_id, found):
        add(journal, flat_id, found)
        if len(journal.checksums) >= count:
            raise error

    monkeypatch.setattr(pack_records.Journal, "add", counting)


@pytest.mark.slow
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 23), damaged=st.integers(0, 23), tail=st.sampled_from(["", "7", "3 ab", "x y\n"]))
def test_an_interrupted_run_goes_on_to_the_same_bytes(count, damaged, tail, monkeypatch):
    """Also after a power cut: the last line torn, a record lost that was noted as written."""
    out = session_folder("packed")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, count, Stopped())
        pack(str(checkpoint("olmoe")), out, "int4:group=32", workers=1)
    with pytest.raises(UserError, match=f"{out}.* not packed to its end"):
        load_model(ModelSettings(str(out)))
    with open(out / PACKING, "a") as journal:
        journal.write(tail)
    layer, expert = divmod(damaged, 8)
    path = sorted(out.glob("*.safetensors"))[1 + layer]
    flip(path, 4096 + expert * (path.stat().st_size - 4096) // 8 + 5)
    pack(str(checkpoint("olmoe")), out, "int4:group=32", workers=2)
    assert content(out) == content(packed(checkpoint("olmoe")))


def test_what_was_packed_is_not_converted_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 10, Stopped())
        pack(str(checkpoint("olmoe")), tmp_path, "int8", workers=1)
    converted = []
    convert = pack_records._RecordWriter._convert
    monkeypatch.setattr(
        pack_records._RecordWriter,
        "_convert",
        lambda self, plan, expert: converted.append(expert) or convert(self, plan, expert),
    )
    pack(str(checkpoint("olmoe")), tmp_path, "int8", workers=1)
    assert len(converted) == 24 - 10
    pack(str(checkpoint("olmoe")), tmp_path, "int8", workers=1)
    assert len(converted) == 24 - 10


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_killed_goes_on(kill, tmp_path, warm_python):
    """The real command, ended while it packs."""
    source, out = (
        checkpoint("olmoe", hidden_size=1024, moe_intermediate_size=512, intermediate_size=512),
        tmp_path / "out",
    )
    words = ["-m", "dwellmoe", "pack", str(source), str(out), "--format", "nf4", "--workers", "1"]
    environment = command_environment(tmp_path)
    process = warm_python.start(words, tmp_path, environment)
    while process.poll() is None and not (
        (out / PACKING).exists() and len((out / PACKING).read_text().splitlines()) > 1
    ):
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)  # it may not end before it is told to
    process.send_signal(kill)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(240)
    assert (out / PACKING).exists(), "it was packed before it could be ended"
    assert process.returncode == (130 if kill == signal.SIGINT else -kill)
    assert "Traceback" not in said
    assert warm_python.run(words, tmp_path, environment, 240).returncode == 0
    assert content(out) == content(packed(source, "nf4"))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layer=st.integers(0, 2),
    expert=st.integers(0, 7),
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_check_names_the_record_of_any_flipped_bit(layer, expert, at, bit, copy):
    index, shards = read_index(str(copy)), find_shards(str(copy))
    tensor = shards.tensors[index.layers[layer].records]
    begin = tensor.offset + expert * tensor.nbytes // 8
    offset, path = begin + int(at * index.layers[layer].record_bytes), shards.paths[tensor.shard]
    flip(path, offset, 1 << bit)
    (fault,) = faults_of(copy)
    assert (
        str(path) in fault and f"expert {expert} of MoE layer {layer}" in fault and f"offset {begin}" in fault
    )
    with pytest.raises(UserError, match=f"expert {expert} of MoE layer {layer}: .* offset {begin}"):
        load_model(ModelSettings(str(copy)))
    flip(path, offset, 1 << bit)
    assert not faults_of(copy)


def test_the_command_checks_every_weight(copy, capsys):
    command.run(["--check", str(copy)])
    assert "24 experts" in capsys.readouterr().out
    shards = find_shards(str(copy))
    gate = shards.tensors["model.layers.1.mlp.gate.weight"]
    flip(shards.paths[gate.shard], gate.offset + 3)
    with pytest.raises(UserError, match=rf"layers\.1\.mlp\.gate\.weight.* offset {gate.offset} "):
        command.run(["--check", str(copy)])


def wrong_reads(path: Path, offset: int):
    """A disk that gives one wrong bit of one file."""

    def read(file: int, memory: list, begin: int) -> int:
        count = os.preadv(file, memory, begin)
        if os.readlink(f"/proc/self/fd/{file}") == str(path) and begin <= offset < begin + count:
            memory[0][offset - begin] ^= 1
        return count

    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["int4:group=32", "as_stored"])
def test_verified_reads_never_give_a_wrong_token(format, dtype):
    """With slots that readers fill, and through staging."""
    folder = packed(checkpoint("olmoe"), format)
    shards, index = find_shards(str(folder)), read_index(str(folder))
    tensor = shards.tensors[index.layers[1].records]
    given = EngineSettings(expert_budget="8", verify_reads=True)
    disk = Storage(shards.paths, read=wrong_reads(shards.paths[tensor.shard], tensor.offset + 100))
    model, engine = load_with_cache(str(folder), given, dtype, storage=disk)
    path = shards.paths[tensor.shard]
    with (
        engine,
        pytest.raises(ReadFault, match=f"{path}: expert 0 of MoE layer 1: .* offset {tensor.offset} "),
    ):
        for seed in range(20):
            model(prompt(rows=2, seed=seed))
    model, engine = load_with_cache(str(folder), given, dtype)
    with engine, torch.no_grad():
        found = model(prompt()).logits
    model, engine = load_with_cache(str(folder), EngineSettings(expert_budget="8"), dtype)
    with engine, torch.no_grad():
        assert torch.equal(model(prompt()).logits, found)


def test_reads_without_checksums_cannot_be_verified():
    with pytest.raises(UserError, match=r"--verify_reads.* has no checksums"):
        engine_of("olmoe", verify_reads=True)


def changed_copy(folder: Path, out: Path, part: str) -> Path:
    """A checkpoint with files of the same names and sizes, in which one kind of tensor is another."""
    out = Path(shutil.copytree(folder, out))
    weights = load_file(out / "model.safetensors")
    changed = {name: weight + (part in name) for name, weight in weights.items()}
    save_file(changed, out / "model.safetensors", {"format": "pt"})
    return out


def test_a_checkpoint_of_the_same_experts_reads_them_from_a_packed_model(tmp_path):
    """`--packed`: with its own routers, not those that were packed."""
    tuned = changed_copy(checkpoint("olmoe"), tmp_path / "tuned", ".gate.")
    folder = packed(checkpoint("olmoe"))
    model, engine = engine_of("olmoe", tuned, packed=str(folder))
    with engine, torch.no_grad():
        assert engine.reads_per_expert == 1
        found = model(prompt(rows=2)).logits
    torch.testing.assert_close(found, logits(tuned, "int4:group=32"), atol=1e-5, rtol=1e-5)


def test_a_packed_model_of_other_experts_is_refused(tmp_path):
    other = changed_copy(checkpoint("olmoe"), tmp_path / "other", ".experts.")
    with pytest.raises(UserError, match="another checkpoint"):
        engine_of("olmoe", other, packed=str(packed(checkpoint("olmoe"))))
    with pytest.raises(UserError, match="another checkpoint"):
        engine_of("mixtral", packed=str(packed(checkpoint("olmoe"))))
    with pytest.raises(UserError, match=f"{INDEX} is missing"):
        engine_of("olmoe", packed=str(checkpoint("olmoe")))


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_another_version_is_refused(version, copy):
    table = json.loads((copy / INDEX).read_text()) | {"version": version}
    (copy / INDEX).write_text(json.dumps(table))
    with pytest.raises(UserError, match=rf"another version.*\({version}, not 3\).*again"):
        load_model(ModelSettings(str(copy)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / INDEX).unlink(), f"{INDEX} is missing"),
        (lambda folder: (folder / INDEX).write_text("{"), "broken"),
        (lambda folder: (folder / INDEX).write_text("[]"), "broken"),
        (lambda folder: edited(folder / INDEX, {"format": "int8"}), "not as it was written"),
        (lambda folder: edited(folder / CONFIG, {"num_hidden_layers": 2}), "another model"),
        (lambda folder: edited(folder / CONFIG, {"hidden_size": 64}), "another model|cannot be loaded"),
        (lambda folder: os.truncate(max(folder.glob("*.safetensors")), 5000), "truncated"),
        (lambda folder: max(folder.glob("*.safetensors")).unlink(), "missing"),
        (
            lambda folder: shutil.copy(packed(checkpoint("olmoe"), "int8") / INDEX, folder),
            "another model|not what was packed",
        ),
    ],
)
def test_a_folder_that_is_not_as_it_was_packed_is_refused(change, message, copy):
    change(copy)
    for load in (
        lambda: load_model(ModelSettings(str(copy))),
        lambda: load_with_cache(str(copy), EngineSettings(expert_budget="2")),
    ):
        with pytest.raises(UserError, match=message):
            load()


def edited(path: Path, entries: dict) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_an_adapter_fits_the_packed_model_and_what_was_packed(copy, tmp_path, capsys):
    """They are one base, held in two forms, until a weight of one is changed."""
    plain, low = base_model(str(checkpoint("olmoe"))), base_model(str(copy))
    assert low.fingerprint == plain.fingerprint
    assert (plain.expert_format, low.expert_format) == ("", "int4:group=32")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "base_model.json").write_text(json.dumps(plain._asdict()))
    check_base_model([str(tmp_path / "adapter")], str(copy), allow_other=False)
    assert "int4:group=32" in capsys.readouterr().err
    gate = find_shards(str(copy)).tensors["model.layers.1.mlp.gate.weight"]
    flip(find_shards(str(copy)).paths[gate.shard], gate.offset)
    assert base_model(str(copy)).fingerprint != plain.fingerprint


def test_a_packed_model_packs_into_another_format(tmp_path):
    pack(str(packed(checkpoint("olmoe"), "as_stored")), tmp_path / "int8", "int8")
    assert content(tmp_path / "int8") == content(packed(checkpoint("olmoe"), "int8"))


def test_a_folder_that_holds_something_else_is_refused(copy, tmp_path):
    with pytest.raises(UserError, match=f"{copy}.* not empty"):
        pack(str(checkpoint("olmoe")), copy, "int8")
    with pytest.raises(UserError, match="not empty"):
        pack(str(checkpoint("olmoe")), Path(shutil.copytree(checkpoint("olmoe"), tmp_path / "same")))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PACKING).write_text('{"version": 3, "format": "int8", "source": "another"}\n')
    with pytest.raises(UserError, match="beginning of another packed model"):
        pack(str(checkpoint("olmoe")), tmp_path / "out", "int8")


def test_a_broken_checkpoint_leaves_nothing(tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "broken")
    os.truncate(folder / "model.safetensors", 30_000)
    with pytest.raises(UserError, match="truncated"):
        pack(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(tmp_path):
    folder = Path(shutil.copytree(checkpoint("olmoe"), tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.experts.3.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="NaN") as error:
        pack(str(folder), tmp_path / "out", "int4")
    assert "model.layers.1.mlp.experts.gate_up_proj, expert 3" in str(error.value)


def test_only_one_process_packs_into_a_folder(tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match=f"{tmp_path}.*being written"):
        pack(str(checkpoint("olmoe")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/pack"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, out):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=out):
        pack(str(checkpoint("olmoe")), tmp_path / out)


def test_a_model_that_would_not_fit_is_not_begun(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("dwellmoe.offload.pack.shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match=f"{tmp_path}.* 1,000 are free"):
        pack(str(checkpoint("olmoe")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_ends_the_run_in_one_line(tmp_path, monkeypatch):
    """With what to do, and nothing lost."""
    write_at, calls = pack_records._write_at, iter(range(100))

    def full(file, content, offset):
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(file, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(pack_records, "_write_at", full)
        with pytest.raises(
            UserError, match=f"{tmp_path}/packed-.*No space left.*make room, and the same command"
        ):
            pack(str(checkpoint("olmoe")), tmp_path, "int4:group=32")
    pack(str(checkpoint("olmoe")), tmp_path, "int4:group=32")
    assert content(tmp_path) == content(packed(checkpoint("olmoe")))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", ""], "OUT ''"),
        (["MODEL"], "OUT ''"),
        ([], "MODEL ''"),
        (["MODEL", "MODEL"], "folder of the checkpoint"),
        (["MODEL", "out", "--format", "int5"], "unknown --format 'int5'.*int4"),
        (["MODEL", "out", "--format", "int4:group=48"], "int4:group=48.*32, 64, 128"),
        (["MODEL", "out", "--workers", "0"], "--workers"),
        (["MODEL/nowhere", "out"], "no model folder"),
        (["--check", ""], "--check ''"),
        (["--check", "MODEL"], f"{INDEX} is missing"),
        (["MODEL", "--check", "MODEL"], "takes no MODEL"),
    ],
)
def test_wrong_words_are_refused(words, message, tmp_path, monkeypatch):
    """Before anything is written: an unset variable of a shell is not meant for the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        command.run([word.replace("MODEL", str(checkpoint("olmoe"))) for word in words])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_command_says_what_it_made(tmp_path, capsys):
    command.run([str(checkpoint("olmoe")), str(tmp_path / "out"), "--format", "int4:group=32"])
    said = capsys.readouterr().out
    assert "24 experts of 3 MoE layers, int4:group=32" in said
    assert "bits a weight" in said


@pytest.mark.parametrize(
    "format",
    [
        *(parse_format(name) for name in ("int8", "nf4", "mxfp4", "int4", "int4:group=128")),
        PlainWeights(torch.bfloat16),
        BlockFp8((128, 64), parts=2, scale_type=torch.bfloat16),
    ],
)
def test_formats_are_written_as_they_are_read(format):
    assert format_of(text_of(format)) == format
