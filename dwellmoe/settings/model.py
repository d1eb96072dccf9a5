"""Settings of the model: which checkpoint, in which number type."""

import sys
from dataclasses import dataclass

from dwellmoe.errors import unknown_name
from dwellmoe.files import check_name
from dwellmoe.options import Settings, option
from dwellmoe.settings.library_names import EXPERTS_IMPLEMENTATIONS, check_library_name

DTYPES = ("auto", "float32", "bfloat16", "float16")
EXPERT_FORMATS = ("as_stored", "int4", "int8", "mxfp4", "nf4")
"""Names of the formats in which frozen experts can be held, and of the checkpoint's own."""


@dataclass
class ModelSettings(Settings):
    """Which model, and how it is loaded."""

    model_name: str = option("models/tiny-olmoe", "folder of a checkpoint, or its name on the hub")
    model_key: str = option(
        "", "label of the model in the names of log and result folders, e.g. _deepseek_16b"
    )
    moe_module_name: str | None = option(
        None,
        "name of the MoE block in a decoder layer, such as mlp; only checked, since it is found by shape",
    )
    dtype: str = option(
        "auto",
        f"number type of the weights: {', '.join(DTYPES)}; auto is the checkpoint's, but float32 on a CPU "
        "that has all experts in memory",
        choices=DTYPES,
    )
    experts_implementation: str | None = option(
        None,
        "implementation of transformers that computes the experts: eager, grouped_mm, ...; default: its own",
    )
    expert_format: str | None = option(
        None,
        "form in which the experts, frozen, are held in memory: nf4, int8, int4 (or int4:group=32, 64, 128), "
        "mxfp4, as_stored for the checkpoint's own (16 bits, MXFP4, block FP8, packed); default: as --dtype "
        "says; of a packed model as it is packed",
    )
    trust_remote_code: bool = option(False, "allow modelling code that comes with the checkpoint to run")

    def __post_init__(self):
        super().__post_init__()
        if self.model_key:
            check_name(self.model_key, "--model_key")
        if self.expert_format is not None:
            name = self.expert_format.partition(":")[0]
            if name not in EXPERT_FORMATS:
                raise unknown_name("--expert_format", name, EXPERT_FORMATS)
        if (name := self.experts_implementation) is not None:
            check_library_name("--experts_implementation", name, EXPERTS_IMPLEMENTATIONS, also=_also())


def _also() -> list[str]:
    """Implementations of experts beside those of the table: the module's own, and what a plug-in added."""
    moe = sys.modules.get("transformers.integrations.moe")
    return ["eager", *(moe.ALL_EXPERTS_FUNCTIONS.keys() if moe else ())]
