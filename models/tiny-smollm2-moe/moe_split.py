"""A dense Llama as a Qwen2-MoE that computes the same: which neuron goes to which expert.

Qwen2-MoE without biases is Llama but for its feed-forward block: a shared expert behind a sigmoid gate, and
routed experts weighted by the router's raw softmax. At zero gate and router the sigmoid is 1/2 and the
softmax 1/E, so down projections scaled by 2 and by E make the block, all experts active, equal the dense one.

Letters: T tokens, D hidden size, N neurons of the dense block, E routed experts, M neurons of one of them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from dwellmoe.errors import UserError

CLUSTER_ROUNDS = 8


@dataclass(frozen=True)
class MoeShape:
    """How the neurons of a block are dealt out."""

    num_experts: int = 32
    top_k: int = 8
    shared_neurons: int = 512

    def expert_neurons(self, all_neurons: int) -> int:
        """M. Raises UserError where the routed neurons do not go into experts of equal size."""
        routed = all_neurons - self.shared_neurons
        if routed <= 0 or routed % self.num_experts:
            raise UserError(
                f"shared_neurons = {self.shared_neurons}: the other {routed} of {all_neurons} neurons do not "
                f"go evenly into {self.num_experts} experts"
            )
        return routed // self.num_experts


def new_moe(dense: LlamaForCausalLM, shape: MoeShape) -> Qwen2MoeForCausalLM:
    """The Qwen2-MoE around the dense model's embedding, attention and norms; its blocks are still empty."""
    moe = Qwen2MoeForCausalLM(moe_config(dense.config, shape))
    loaded = moe.load_state_dict(dense.state_dict(), strict=False)
    foreign = [key for key in (*loaded.missing_keys, *loaded.unexpected_keys) if ".mlp." not in key]
    assert not foreign, f"Qwen2-MoE and the dense model differ outside the blocks: {foreign}"
    return moe.eval()


def moe_config(dense: LlamaConfig, shape: MoeShape) -> Qwen2MoeConfig:
    """Raises UserError for a Llama with biases, which Qwen2-MoE lacks."""
    if dense.attention_bias or dense.mlp_bias:
        raise UserError("a Llama with biases cannot be written as a Qwen2-MoE")
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps")
    kept += ("rope_parameters", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    return Qwen2MoeConfig(
        **{name: getattr(dense, name) for name in kept},
        qkv_bias=False,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        moe_intermediate_size=shape.expert_neurons(dense.intermediate_size),
        shared_expert_intermediate_size=shape.shared_neurons,
        norm_topk_prob=False,
        router_aux_loss_coef=0.0,
    )


@torch.no_grad()
def neuron_strength(mlp: Any, x_TD: Tensor) -> Tensor:
    """[T, N]: length of what each neuron of a dense block adds to its output, over the output's length."""
    hidden_TN = mlp.act_fn(mlp.gate_proj(x_TD)) * mlp.up_proj(x_TD)
    lengths_T1 = mlp.down_proj(hidden_TN).norm(dim=-1, keepdim=True)
    return hidden_TN.abs() * mlp.down_proj.weight.norm(dim=0) / lengths_T1


def deal_neurons(strength_TN: Tensor, shape: MoeShape, seed: int) -> Tensor:
    """[N]: the neurons in their new order: the shared ones, then those of expert 0, of expert 1, ...

    Shared are those that carry the most of the output over all tokens; the others are clustered by when they
    are strong, so that a token's output lies in few experts.
    """
    energy_N = strength_TN.square().mean(0)
    by_energy_N = energy_N.argsort(descending=True, stable=True)
    shared, routed = by_energy_N[: shape.shared_neurons], by_energy_N[shape.shared_neurons :].sort().values
    clusters_EM = balanced_clusters(strength_TN[:, routed].T, shape.num_experts, seed)
    return torch.cat([shared, routed[clusters_EM].flatten()])


def balanced_clusters(profiles_NT: Tensor, clusters: int, seed: int) -> Tensor:
    """[clusters, N / clusters]: row numbers of equal-sized groups whose rows are correlated over T.

    k-means on the sphere, each round filling the groups from the most alike pair downwards.
    """
    unit_NT = nn.functional.normalize(profiles_NT - profiles_NT.mean(1, keepdim=True), dim=1)
    size = len(unit_NT) // clusters
    centres = _first_centres(unit_NT, clusters, seed)
    groups = fill_groups(unit_NT @ centres.T, size)
    for _ in range(CLUSTER_ROUNDS - 1):
        centres = nn.functional.normalize(unit_NT[groups].mean(1), dim=1)
        groups = fill_groups(unit_NT @ centres.T, size)
    return groups


def _first_centres(unit_NT: Tensor, count: int, seed: int) -> Tensor:
    """Rows drawn with the chance of their distance from those drawn before (k-means++)."""
    draw = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(unit_NT), (), generator=draw))]
    for _ in range(count - 1):
        distance_N = (1 - unit_NT @ unit_NT[chosen].T).clamp(min=0).amin(1)
        chosen.append(int(torch.multinomial(distance_N, 1, generator=draw)))
    return unit_NT[chosen]


def fill_groups(likeness_NC: Tensor, size: int) -> Tensor:
    """[C, size]: every row in one group; the most alike pair of a free row and a group with room first."""
    rows, clusters = likeness_NC.shape
    groups: list[list[int]] = [[] for _ in range(clusters)]
    placed = [False] * rows
    for pair in likeness_NC.flatten().argsort(descending=True, stable=True).tolist():
        row, cluster = divmod(pair, clusters)
        if not placed[row] and len(groups[cluster]) < size:
            groups[cluster].append(row)
            placed[row] = True
    return torch.tensor(groups).sort(dim=1).values


@torch.no_grad()
def fill_block(block: Any, mlp: Any, order_N: Tensor, shape: MoeShape) -> None:
    """Writes the dense block's weights, in the new order, into the MoE block; router and gate are zero."""
    gate_ND, up_ND = mlp.gate_proj.weight[order_N], mlp.up_proj.weight[order_N]
    down_DN = mlp.down_proj.weight[:, order_N]
    shared, experts, count = block.shared_expert, block.experts, shape.num_experts
    shared.gate_proj.weight.copy_(gate_ND[: shape.shared_neurons])
    shared.up_proj.weight.copy_(up_ND[: shape.shared_neurons])
    shared.down_proj.weight.copy_(2 * down_DN[:, : shape.shared_neurons])
    rows = [rows_ND[shape.shared_neurons :].unflatten(0, (count, -1)) for rows_ND in (gate_ND, up_ND)]
    experts.gate_up_proj.copy_(torch.cat(rows, dim=1))
    columns_DEM = down_DN[:, shape.shared_neurons :].unflatten(1, (count, -1))
    experts.down_proj.copy_(count * columns_DEM.transpose(0, 1))
    block.gate.weight.zero_()
    block.shared_expert_gate.weight.zero_()
