"""Names of a model's tensors in a GGUF file, by the table of the gguf package."""

from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

from dwellmoe.errors import UserError
from dwellmoe.offload.io.gguf_file import GgufPart

ARCHITECTURE = "general.architecture"
LLAMA_CPP_NAMES = (("language_model.", ""), ("e_score_correction_bias", "e_score_correction.bias"))
"""What llama.cpp's converter replaces in a name before it looks it up."""
ENDINGS = (".weight", ".bias")


class GgufNames:
    """Checkpoint's name of a tensor -> its name in a GGUF of that architecture."""

    def __init__(self, first: GgufPart) -> None:
        name = first.metadata.get(ARCHITECTURE)
        found: Any = next((arch for arch, known in MODEL_ARCH_NAMES.items() if known == name), None)
        if not isinstance(found, MODEL_ARCH):
            raise UserError(f"{first.path}: architecture {name!r:.40} is not known to the gguf package")
        layers = first.metadata.get(f"{name}.block_count")
        if not isinstance(layers, int):
            raise UserError(f"{first.path}: its metadata lacks {name}.block_count")
        self.architecture, self.layers = str(name), layers
        self._table = get_tensor_name_map(found, layers)

    def find(self, name: str) -> str | None:
        """None where the architecture has no such tensor."""
        for theirs, ours in LLAMA_CPP_NAMES:
            name = name.replace(theirs, ours)
        return self._table.get_name(name, try_suffixes=ENDINGS)
