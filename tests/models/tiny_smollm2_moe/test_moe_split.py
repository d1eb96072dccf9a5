import pytest
import torch
from transformers import LlamaConfig

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from moe_heal import ALL_NEURONS
from moe_split import (
    MoeShape,
    balanced_clusters,
    deal_neurons,
    fill_block,
    moe_config,
    neuron_strength,
    new_moe,
)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", ALL_NEURONS])
def test_all_experts_active_is_the_dense_model(dense, shape, rows, experts):
    moe = new_moe(dense, MoeShape(shape.num_experts, shape.num_experts, shape.shared_neurons))
    moe.set_experts_implementation(experts)
    for seed, (decoder, original) in enumerate(zip(moe.model.layers, dense.model.layers, strict=True)):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(seed))
        fill_block(decoder.mlp, original.mlp, order, shape)
    with torch.no_grad():
        torch.testing.assert_close(moe(rows).logits, dense(rows).logits, atol=2e-5, rtol=1e-4)


def test_fewer_experts_are_not_the_dense_model(dense, shape, rows):
    moe = new_moe(dense, shape)
    for decoder, original in zip(moe.model.layers, dense.model.layers, strict=True):
        fill_block(decoder.mlp, original.mlp, torch.arange(48), shape)
    with torch.no_grad():
        assert (moe(rows).logits - dense(rows).logits).abs().max() > 0.1


def test_the_built_family_has_routers_and_experts_where_they_are_looked_for(dense, shape):
    layers = find_moe_layers(new_moe(dense, shape))
    assert [(layer.num_experts, layer.top_k) for layer in layers] == [(8, 2), (8, 2)]


def test_every_neuron_is_dealt_out_once(dense, shape, activations):
    strength = neuron_strength(dense.model.layers[0].mlp, activations[0])
    order = deal_neurons(strength, shape, seed=0)
    assert sorted(order.tolist()) == list(range(48))
    assert torch.equal(order, deal_neurons(strength, shape, seed=0))


def test_shared_neurons_carry_more_than_any_routed_one(dense, shape, activations):
    strength = neuron_strength(dense.model.layers[0].mlp, activations[0])
    energy = strength.square().mean(0)[deal_neurons(strength, shape, seed=0)]
    assert energy[: shape.shared_neurons].min() >= energy[shape.shared_neurons :].max()


def test_strengths_are_what_the_neurons_add(dense, activations):
    read, _ = activations
    mlp = dense.model.layers[0].mlp
    with torch.no_grad():
        hidden = mlp.act_fn(mlp.gate_proj(read)) * mlp.up_proj(read)
        added = hidden[5, 7] * mlp.down_proj.weight[:, 7]
    wanted = added.norm() / mlp.down_proj(hidden)[5].norm()
    torch.testing.assert_close(neuron_strength(mlp, read)[5, 7], wanted)


def test_clusters_are_equal_and_find_what_fires_together():
    draw = torch.Generator().manual_seed(0)
    causes = torch.randn(4, 200, generator=draw)
    profiles = causes.repeat_interleave(6, 0) + 0.1 * torch.randn(24, 200, generator=draw)
    shuffle = torch.randperm(24, generator=draw)
    groups = balanced_clusters(profiles[shuffle], 4, seed=0)
    assert groups.shape == (4, 6)
    assert sorted(groups.flatten().tolist()) == list(range(24))
    assert all(len({int(shuffle[row]) // 6 for row in group}) == 1 for group in groups)


def test_neurons_that_do_not_go_evenly_are_refused():
    with pytest.raises(UserError, match="shared_neurons = 10: the other 38 of 48"):
        MoeShape(8, 2, 10).expert_neurons(48)


def test_a_llama_with_biases_is_refused():
    with pytest.raises(UserError, match="biases"):
        moe_config(LlamaConfig(attention_bias=True), MoeShape())
