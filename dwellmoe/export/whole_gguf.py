"""The merged model as a GGUF file, by the converter that comes with llama.cpp."""

import subprocess
import sys
import tempfile
from pathlib import Path

from dwellmoe.errors import UserError
from dwellmoe.export.merged import export_merged
from dwellmoe.files import replacing_path


def export_gguf(
    converter: Path, adapter: str, model_name: str | None, allow_other_base: bool, out: str, outtype: str
) -> None:
    """Merges the adapter into a folder beside `out`, which needs the model's size in free space for a while,
    and converts that. Raises UserError, with the converter's last words where it fails.
    """
    target = Path(out)
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=target.parent) as folder:
        merged = Path(folder) / target.stem
        export_merged(adapter, model_name, allow_other_base, str(merged))
        with replacing_path(target) as beside:
            words = [str(merged), "--outfile", str(beside), "--outtype", outtype]
            done = subprocess.run([sys.executable, str(converter), *words], capture_output=True, text=True)
            if done.returncode or not beside.is_file():
                raise UserError(f"{converter}: {_last_line(done)}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].strip() if lines else f"wrote nothing (exit code {done.returncode})"
