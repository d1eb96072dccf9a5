"""`dwellmoe export gguf`: the merged model through the converter of llama.cpp, here a stand-in for it."""

import pytest

from dwellmoe.cli.main import run
from dwellmoe.errors import UserError
from dwellmoe.export.llama_cpp import CONVERTER

STAND_IN = """
import pathlib, sys
folder, option, out, *rest = sys.argv[1:]
assert option == "--outfile" and rest == ["--outtype", "f32"]
content = (pathlib.Path(folder) / "model.safetensors").read_bytes()
assert (pathlib.Path(folder) / "tokenizer_config.json").exists()
pathlib.Path(out).write_bytes(b"GGUF" + content)
"""


def export(adapter, out, *options):
    run(
        [
            "export",
            "gguf",
            "--adapter",
            str(adapter),
            "--out",
            str(out),
            "--outtype",
            "f32",
            *map(str, options),
        ]
    )


def converter(folder, source):
    folder.mkdir()
    (folder / CONVERTER).write_text(source)
    return folder


def test_the_converter_gets_the_merged_model(router_adapter, tmp_path):
    llama_cpp, merged = converter(tmp_path / "llama.cpp", STAND_IN), tmp_path / "hf"
    export(router_adapter, tmp_path / "t.gguf", "--llama_cpp", llama_cpp)
    run(["export", "hf", "--adapter", str(router_adapter), "--out", str(merged)])
    assert (tmp_path / "t.gguf").read_bytes() == b"GGUF" + (merged / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"llama.cpp", "hf", "t.gguf"}


def test_what_a_failing_converter_says_is_passed_on(router_adapter, tmp_path):
    llama_cpp = converter(
        tmp_path / "llama.cpp", "raise NotImplementedError('BPE pre-tokenizer was not recognized')"
    )
    with pytest.raises(UserError, match="NotImplementedError: BPE pre-tokenizer") as error:
        export(router_adapter, tmp_path / "t.gguf", "--llama_cpp", llama_cpp)
    assert "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == [llama_cpp]


def test_without_llama_cpp_the_way_is_told(router_adapter, tmp_path):
    with pytest.raises(UserError, match=rf"--llama_cpp .*dwellmoe export hf .*{CONVERTER}"):
        export(router_adapter, tmp_path / "t.gguf")
    with pytest.raises(UserError, match=f"has no {CONVERTER}"):
        export(router_adapter, tmp_path / "t.gguf", "--llama_cpp", tmp_path)
