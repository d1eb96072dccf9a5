"""Runs llama.cpp's converter on a tokenizer that is not on its list.

    python benchmarks/llamacpp_convert.py .../convert_hf_to_gguf.py CHECKPOINT --outfile FILE --outtype f32

It recognises tokenizers by a hash of what they make of a text, and refuses one of a user's own: here the way
in which it splits a text is named instead. The other words are the converter's.
"""

import importlib
import runpy
import sys
from pathlib import Path

PRE_TOKENIZER = "smollm"
"""llama.cpp's name for single digits apart, then GPT-2's pattern: that of the tokenizers in models/."""


def main() -> None:
    script = Path(sys.argv[1])
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    model = importlib.import_module("conversion.base").TextModel
    model.get_vocab_base_pre = lambda self, tokenizer: PRE_TOKENIZER
    sys.argv = sys.argv[1:]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
