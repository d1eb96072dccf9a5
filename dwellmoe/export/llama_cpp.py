"""The converter that comes with llama.cpp. Without torch: that it is missing is said at once."""

from pathlib import Path

from dwellmoe.errors import UserError

CONVERTER = "convert_hf_to_gguf.py"


def find_converter(llama_cpp: str | None, adapter: str, out: str) -> Path:
    """The converter in a folder of llama.cpp; without one, UserError with the commands that do the same."""
    if not llama_cpp:
        raise UserError(
            f"--llama_cpp is missing: the folder of llama.cpp's source, whose {CONVERTER} writes it; by "
            f"hand: dwellmoe export hf --adapter {adapter} --out MERGED, then python llama.cpp/{CONVERTER} "
            f"MERGED --outfile {out}"
        )
    path = Path(llama_cpp) / CONVERTER
    if not path.is_file():
        raise UserError(f"--llama_cpp {llama_cpp}: has no {CONVERTER}: give the folder of llama.cpp's source")
    return path
