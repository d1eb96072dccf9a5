"""Random models under 1 MB of every MoE family."""

import dataclasses
import re
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import dwellmoe.families  # noqa: F401 - registers the families that transformers lacks
from dwellmoe.families.text_model import runs_whole

# Families call the same thing differently: whatever of this a configuration has, is set.
_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "moe_hidden_size": 32,
    "intermediate_size_mlp": 24,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": 16,
    "max_position_embeddings": 128,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "depth": 1,
    "num_hidden_layers": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "out_hidden_size": 32,
    "vision_output_dim": 32,
    "projector_input_dim": 16,
    "projector_output_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "num_position_embeddings": 16,
    "output_channels": 16,
    "mlp_dim": 16,
    "downsample_hidden_size": 16,
    "downsample_channels": [16, 16],
    "global_attn_indexes": [0],
    "adapter_input_size": 16,
    "adapter_out_dim": 32,
    "output_dim": 32,
    "text_hidden_size": 32,
    "patch_sizes": [4],
    "hidden_sizes": [16],
    "depths": [1],
}
"""Also of parts for audio."""
_MLA = {"num_key_value_heads": 4}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse", "sparse"]}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
_SLIDING = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "rel_extent": 16,
    "d_rel": 4,
}
# What a family asks for beyond the sizes; dense layers are mixed in where it allows them.
_EXTRAS: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bailing_hybrid": _MLA | _DENSE_FIRST | _HYBRID,
    "beam": _DENSE_FIRST,
    "deepseek": {"n_shared_experts": 2},
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v4": {
        "mlp_layer_types": [
            "moe",
            "moe",
            "moe",
        ],  # its hashed layers look experts up in a table of the checkpoint
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "index_head_dim": 16,
    },
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse"]},
    "gemma4_text": {
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 64,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
    },
    "dots3_note_text": _MLA
    | {"layer_types": ["indexed_attention"] * 3, "shared_experts_intermediate_size": 16},
    "ernie4_5_vl_moe_text": {
        "moe_intermediate_size": [16, 16],
        "rope_parameters": _MROPE | {"mrope_section": [1, 1, 2]},
    },
    "glm4_moe_lite": _MLA,
    "glm4v_moe_text": {"rope_parameters": _MROPE},
    "glm5_next_text": _MLA
    | _DENSE_FIRST
    | {"qk_rope_head_dim": 0, "layer_types": ["linear_attention", "linear_attention", "full_attention"]},
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
    },
    "inkling2_text": _SLIDING | {"unpadded_vocab_size": 64},
    "inkling_text": _SLIDING | _DENSE_FIRST,
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "kimi_linear": _MLA | _DENSE_FIRST | _HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "longcat_flash": {"num_key_value_heads": 4, "zero_expert_num": 2},
    "mistral4": _MLA,
    "nemotron_h": {
        "layers_block_type": ["mamba", "moe", "attention", "moe"],
        "num_hidden_layers": 4,
        "moe_shared_expert_intermediate_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "use_mamba_kernels": False,
    },
    "qwen2_moe": {"mlp_only_layers": [1]},
    "qwen3_5_moe_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "qwen4_exp_text": _HYBRID
    | {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1],
        "ngram_vocab_size_base": 64,
        "heads_per_ngram": 2,
        "make_ngram_vocab_size_divisible_by": 8,
        "split_ngram_parts": 2,
    },
    "mistral_large4_text": _MLA,
    "step3p5": {"mlp_layer_types": ["dense", "sparse", "sparse"], "share_expert_dim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
FAMILIES_BY_NAME = (
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "deepseek_v2",
    "deepseek_v3",
    "mixtral",
    "gpt_oss",
    "deepseek",
)
OTHER_FAMILIES = (
    "afmoe",
    "aria_text",
    "axk1",
    "axk2",
    "bailing_hybrid",
    "beam",
    "cohere2_moe",
    "deepseek_v32",
    "deepseek_v4",
    "dots1",
    "ernie4_5_moe",
    "exaone_moe",
    "flex_olmo",
    "flint",
    "gemma4_text",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoehybrid",
    "granitemoeshared",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "inkling2_text",
    "inkling_text",
    "jamba",
    "kimi_linear",
    "kolibri1",
    "laguna",
    "lfm2_moe",
    "llama4_text",
    "longcat_flash",
    "mellum",
    "mimo_v2_flash",
    "minimax",
    "minimax_m2",
    "minimax_m3_vl_text",
    "nemotron_h",
    "phimoe",
    "qwen3_5_moe_text",
    "qwen3_next",
    "solar_open",
    "zaya",
)
MULTIMODAL = {
    "dots3_note": "dots3_note_text",
    "llama4": "llama4_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""`model_type` of a checkpoint for images and text, and of its text part."""
WHOLE_MULTIMODAL = {
    "aria": "aria_text",
    "deepseek_ocr2": "deepseek_ocr2_text",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe_text",
    "gemma4": "gemma4_text",
    "glm4v_moe": "glm4v_moe_text",
    "glm5_next": "glm5_next_text",
    "inkling2": "inkling2_text",
    "inkling_mm_model": "inkling_text",
    "minimax_m3_vl": "minimax_m3_vl_text",
    "mistral3": "mistral4",
    "mistral_large4": "mistral_large4_text",
    "muse_spark": "muse_spark_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "step3p7": "step3p5",
    "unlimited_ocr": "unlimited_ocr_text",
}
"""The same for those whose text part transformers has no class for."""
_VISION_TYPES = {"aria": "idefics3_vision", "mistral3": "pixtral", "mistral_large4": "pixtral"}
"""Where a family takes its part for images from another."""
_WHOLE: dict[str, dict[str, Any]] = {
    "muse_spark": {"projector_hidden_size": 16, "out_hidden_size": 64},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 7, "pad_token_id": 0},
}
"""What a family asks for beyond its parts."""
_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "dots3_note": {"vision_config": {"mlp_layer_types": ["dense"], "adapter_in_dim": 16}},
    # With fewer layers than sizes of patches it would need scipy.
    "inkling_mm_model": {"vision_config": {"patch_size": 2, "num_hidden_layers": 3}},
}
"""What a family asks for in a part."""
FAMILIES = FAMILIES_BY_NAME + OTHER_FAMILIES


def tiny_config(family: str, **overrides):
    """A tiny configuration of a `model_type`."""
    config_class = CONFIG_MAPPING[family]
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    sizes = {name: value for name, value in _SIZES.items() if name in known}
    return AutoConfig.for_model(family, **(sizes | _EXTRAS.get(family, {}) | overrides))


def tiny_model(family: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A random model of a `model_type` in evaluation mode; its router prefers some experts clearly."""
    torch.manual_seed(seed)
    config = tiny_config(family, **overrides)
    auto: Any = AutoModelForImageTextToText if runs_whole(config) else AutoModelForCausalLM
    return _with_clear_preferences(auto.from_config(config))


def tiny_multimodal(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model for images and text, as such checkpoints are published; its text part is a MoE."""
    config_class: Any = CONFIG_MAPPING[family]
    parts: dict[str, Any] = {"text_config": tiny_config((MULTIMODAL | WHOLE_MULTIMODAL)[family]).to_dict()}
    if vision_type := _VISION_TYPES.get(family):
        parts["vision_config"] = _small_part(CONFIG_MAPPING[vision_type]) | {"model_type": vision_type}
    for name, kind in config_class.sub_configs.items():
        if name not in parts:
            parts[name] = _small_part(kind) | _PARTS.get(family, {}).get(name, {})
    torch.manual_seed(seed)
    config = config_class(**parts, **_WHOLE.get(family, {}))
    return _with_clear_preferences(AutoModelForImageTextToText.from_config(config))


def _small_part(config_class: Any) -> dict[str, Any]:
    """Small sizes of a part for images or audio, which may have parts of its own."""
    known = {field.name for field in dataclasses.fields(config_class)}
    known |= set(getattr(config_class, "attribute_map", {}))
    sizes = {name: size for name, size in _VISION_SIZES.items() if name in known}
    nested = {name: _small_part(kind) for name, kind in config_class.sub_configs.items()}
    return sizes | nested


def _with_clear_preferences(model: PreTrainedModel) -> PreTrainedModel:
    for name, weight in model.named_parameters():
        if re.search(r"\.(gate|router)\.", name) and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)
    return model.eval()
