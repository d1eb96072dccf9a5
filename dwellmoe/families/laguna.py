"""Laguna: corrects one of transformers' renamings of its weights.

transformers 5.23 renames a checkpoint's `mlp.shared_expert.` by a regular expression whose last point matches
any letter, so that it also changes the names of the model itself. PEFT puts the names of an adapter through
the same table: without this, LoRA on the shared experts could be saved and not be loaded.
"""

from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming

LOOSE = "mlp.shared_expert."
STRICT = r"mlp\.shared_expert\."
MODEL_TYPE = "laguna"


def _strict(entry):
    is_loose = isinstance(entry, WeightRenaming) and entry.source_patterns == [LOOSE]
    return WeightRenaming(STRICT, "mlp.shared_experts.") if is_loose else entry


if renamings := get_checkpoint_conversion_mapping(MODEL_TYPE):
    register_checkpoint_conversion_mapping(
        MODEL_TYPE, [_strict(entry) for entry in renamings], overwrite=True
    )
