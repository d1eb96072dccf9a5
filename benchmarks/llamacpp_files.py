"""Makes the GGUF files of a checkpoint: converted by llama.cpp's own script, quantised by llama.cpp."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.files import replacing_path

HERE = Path(__file__).resolve().parent
SETUP = "make bench-llamacpp sets it up"


def python_of(llamacpp: Path) -> str:
    """The Python of an environment with llama-cpp-python. UserError where there is none."""
    python = llamacpp / "bin" / "python"
    if not python.exists():
        raise UserError(f"--llamacpp {llamacpp}: no environment with llama-cpp-python: {SETUP}")
    return str(python)


def convert(checkpoint: Path, out: Path, kind: str, llamacpp: Path) -> Path:
    """The checkpoint as a GGUF file of type `bf16` or `f32`; a file that is there already is kept."""
    if not out.exists():
        script = llamacpp / "source" / "vendor" / "llama.cpp" / "convert_hf_to_gguf.py"
        if not script.is_file():
            raise UserError(f"--llamacpp {llamacpp}: has no {script}: {SETUP}")
        with replacing_path(out) as beside:
            words = [str(script), str(checkpoint), "--outfile", str(beside), "--outtype", kind]
            _run([sys.executable, str(HERE / "llamacpp_convert.py"), *words])
    return out


def quantise(source: Path, out: Path, kind: str, llamacpp: Path) -> Path:
    """The same model as `Q4_0` or `Q8_0`, as llama-quantize writes it; a file that is there is kept."""
    if not out.exists():
        with replacing_path(out) as beside:
            words = [str(source), "--quantise_to", str(beside), "--kind", kind]
            _run([python_of(llamacpp), str(HERE / "llamacpp_worker.py"), *words])
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise UserError(f"{Path(command[1]).name}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def write_untied(checkpoint: Path, out: Path) -> Path:
    """A copy of a small checkpoint with an output layer of its own: llama.cpp's OLMoE knows no tied one."""
    with replacing_path(out) as beside:
        shutil.copytree(checkpoint, beside)
        config = json.loads((beside / "config.json").read_text())
        (beside / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2))
        weights = load_file(beside / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, beside / "model.safetensors", {"format": "pt"})
    return out
