"""The architecture of DeepSeek-MoE-16B (`model_type: deepseek`), which transformers has no class for.

Llama's attention and norms around DeepSeek-V2's MoE block: softmax scores, greedy top-k, shared experts
beside the routed ones, dense first layers (Dai et al., "DeepSeekMoE", arXiv 2401.06066, section 3). Importing
this file registers it with the Auto classes and the weight conversion: published checkpoints load, and
are written, under their own tensor names; no code that a checkpoint brings along is ever run.

Letters: T tokens, E routed experts, K chosen experts a token.
"""

from typing import cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    initialization,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import (
    DeepseekV2Experts,
    DeepseekV2Moe,
    DeepseekV2TopkRouter,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from dwellmoe.errors import UserError


@strict
class DeepseekConfig(LlamaConfig):
    """The fields of the published `config.json`; the defaults are those of DeepSeek-MoE-16B."""

    model_type = "deepseek"
    attribute_map = {"num_experts": "n_routed_experts"}  # noqa: RUF012 - a field if it were annotated

    vocab_size: int = 102400
    hidden_size: int = 2048
    intermediate_size: int = 10944
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    moe_intermediate_size: int = 1408
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    num_experts_per_tok: int = 6
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    norm_topk_prob: bool = False
    scoring_func: str = "softmax"
    # Read by DeepSeek's own training code only; kept so that a checkpoint is written back as it was.
    aux_loss_alpha: float = 0.001
    seq_aux: bool = True
    # What DeepSeek-V2's router asks for: no groups, no scaling.
    topk_method: str = "greedy"
    n_group: int | None = None
    topk_group: int | None = None
    routed_scaling_factor: float = 1.0

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)  # names remote code, which this file replaces
        super().__post_init__(**kwargs)
        self._refuse_what_is_not_computed()

    def _refuse_what_is_not_computed(self) -> None:
        if self.scoring_func != "softmax":
            raise UserError(f"deepseek config: scoring_func is '{self.scoring_func}': choose from softmax")
        if self.n_shared_experts < 1:
            raise UserError(
                f"deepseek config: n_shared_experts is {self.n_shared_experts}: at least 1 is needed"
            )

    def is_moe_layer(self, layer_id: int) -> bool:
        """Whether a decoder layer is one of experts."""
        return layer_id >= self.first_k_dense_replace and layer_id % self.moe_layer_freq == 0


class DeepseekTopkRouter(DeepseekV2TopkRouter):
    """DeepSeek-V2's greedy router, with the renormalisation that V2 dropped."""

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)  # pyright: ignore[reportArgumentType]
        self.norm_topk_prob = config.norm_topk_prob

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE, weights_TK, indices_TK = cast(
            tuple[Tensor, Tensor, Tensor], super().forward(hidden_states)
        )
        if self.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)  # the original's epsilon
        return logits_TE, weights_TK, indices_TK


class DeepseekMoe(DeepseekV2Moe):
    """Routed experts (fused) and the shared experts, which are one MLP as wide as all of them."""

    def __init__(self, config: DeepseekConfig):
        super().__init__(config)  # pyright: ignore[reportArgumentType]
        self.gate = DeepseekTopkRouter(config)


class DeepseekDecoderLayer(LlamaDecoderLayer):
    def __init__(self, config: DeepseekConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if config.is_moe_layer(layer_idx):
            self.mlp = DeepseekMoe(config)


class DeepseekPreTrainedModel(LlamaPreTrainedModel):
    config: DeepseekConfig
    _no_split_modules = ["DeepseekDecoderLayer"]  # noqa: RUF012
    _can_record_outputs = {"hidden_states": DeepseekDecoderLayer, "attentions": LlamaAttention}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers would look for the decorator in this file; it is on DeepSeek-V2's experts

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        own = isinstance(module, DeepseekTopkRouter | DeepseekV2Experts)
        for parameter in module.parameters(recurse=False) if own else ():
            initialization.normal_(parameter, mean=0.0, std=self.config.initializer_range)


class DeepseekModel(DeepseekPreTrainedModel, LlamaModel):
    """The forward pass is Llama's; only the layers it runs through are others."""

    def __init__(self, config: DeepseekConfig):
        PreTrainedModel.__init__(self, config)  # Llama's would build its own layers first
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        layers = (DeepseekDecoderLayer(config, layer_id) for layer_id in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()


class DeepseekForCausalLM(DeepseekPreTrainedModel, LlamaForCausalLM):
    def __init__(self, config: DeepseekConfig):
        PreTrainedModel.__init__(self, config)
        self.model = DeepseekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("deepseek", DeepseekConfig, exist_ok=True)
AutoModel.register(DeepseekConfig, DeepseekModel, exist_ok=True)
AutoModelForCausalLM.register(DeepseekConfig, DeepseekForCausalLM, exist_ok=True)
# Its tensor names are those of Qwen2-MoE: `mlp.experts.J.{gate,up,down}_proj.weight`, one matrix an expert.
_CONVERSION = get_checkpoint_conversion_mapping("qwen2_moe") or []
register_checkpoint_conversion_mapping("deepseek", _CONVERSION, overwrite=True)
