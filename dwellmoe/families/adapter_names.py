"""Has PEFT load an adapter by the names that it was saved with.

PEFT puts the names of an adapter through transformers' renamings of a checkpoint's tensors. Some of these
also match names that the model has already: `model.layers` in `language_model.layers` of the OCR models,
`.experts.` in `mlp.experts` of Mistral Large 4, `mlp.shared_expert.`, whose last point is any letter, in
Laguna. Without this, an adapter of these models could be saved and not be loaded.
"""

from typing import Any

from peft import get_peft_model_state_dict
from peft.utils import transformers_weight_conversion as conversion

_convert = conversion.convert_peft_adapter_state_dict_for_transformers


def _convert_other_names(
    model: Any, peft_config: Any, adapter_state_dict: dict[str, Any], adapter_name: str = "default"
) -> dict[str, Any]:
    own = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    if adapter_state_dict.keys() <= own.keys():
        return adapter_state_dict
    return _convert(model, peft_config, adapter_state_dict, adapter_name)


conversion.convert_peft_adapter_state_dict_for_transformers = _convert_other_names
