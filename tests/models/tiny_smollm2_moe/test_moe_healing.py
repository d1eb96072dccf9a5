from typing import Any

import pytest
import torch

from moe_activations import DenseStream
from moe_heal import ALL_NEURONS, heal_block, mean_error, refit_down
from moe_router_fit import contribution_norms, fit_router, recall
from moe_split import deal_neurons, fill_block, neuron_strength, new_moe


@pytest.fixture
def block(dense, shape, activations):
    """The first block, split and with its router fitted on most of the tokens."""
    moe = new_moe(dense, shape)
    moe.set_experts_implementation(ALL_NEURONS)
    decoder: Any = moe.model.layers[0]
    block, mlp = decoder.mlp, dense.model.layers[0].mlp
    fill_block(block, mlp, deal_neurons(neuron_strength(mlp, activations[0]), shape, 0), shape)
    seen = activations[0][:640]
    block.gate.weight.data.copy_(fit_router(seen, contribution_norms(block.experts, seen)))
    return block


def test_contribution_norms_are_those_of_the_experts_own_outputs(block, activations):
    token = activations[0][3]
    up_gate, down = block.experts.gate_up_proj[5], block.experts.down_proj[5]
    with torch.no_grad():
        gate, up = (up_gate @ token).chunk(2)
        wanted = (down @ (torch.nn.functional.silu(gate) * up)).norm()
    torch.testing.assert_close(
        contribution_norms(block.experts, token[None])[0, 5], wanted, rtol=1e-3, atol=0
    )


def test_a_fitted_router_finds_unseen_tokens_largest_contributors(block, shape, activations):
    unseen = activations[0][640:]
    norms = contribution_norms(block.experts, unseen)
    found = recall(block.gate(unseen)[0], norms, shape.top_k)
    chance = shape.top_k / shape.num_experts
    assert found > 1.5 * chance
    assert recall(norms, norms, shape.top_k) == 1.0
    random = torch.randn(norms.shape, generator=torch.Generator().manual_seed(0))
    assert recall(random, norms, shape.top_k) == pytest.approx(chance, abs=0.1)


def test_refitting_and_healing_each_lower_the_error_on_unseen_tokens(block, activations):
    (seen, target), (unseen, unseen_target) = zip(*(t.split(640) for t in activations), strict=True)
    errors = [mean_error(block, unseen, unseen_target)]
    refit_down(block, seen, target)
    errors.append(mean_error(block, unseen, unseen_target))
    heal_block(block, seen, target, epochs=8, learning_rate=3e-3, seed=0)
    errors.append(mean_error(block, unseen, unseen_target))
    assert errors[0] > errors[1] > errors[2], errors


def test_outlier_tokens_do_not_dominate_the_refit(block, activations):
    """A token whose output is a thousand times as long pulls as one token does."""
    read, gave = (tensor[:640].clone() for tensor in activations)
    refit_down(block, read, gave)
    plain = mean_error(block, read[1:], gave[1:])
    gave[0] *= 1000
    refit_down(block, read, gave)
    assert mean_error(block, read[1:], gave[1:]) < 1.2 * plain


def test_healing_is_the_same_each_time(block, activations):
    start = {name: weight.clone() for name, weight in block.state_dict().items()}
    results = []
    for _ in range(2):
        block.load_state_dict(start)
        heal_block(block, *(t[:512] for t in activations), epochs=2, learning_rate=1e-3, seed=0)
        results.append({name: weight.clone() for name, weight in block.state_dict().items()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in start)


def test_a_resumed_stream_goes_on_where_it_was(dense, rows, tmp_path):
    whole = DenseStream.begin(dense, rows)
    whole.advance()
    whole.save(tmp_path / "stream.safetensors")
    second = whole.advance()
    resumed = DenseStream.resume(dense, tmp_path / "stream.safetensors")
    assert resumed.layer == 1
    assert all(torch.equal(a, b) for a, b in zip(resumed.advance(), second, strict=True))


def test_the_stream_is_the_dense_models_own(dense, rows):
    stream = DenseStream.begin(dense, rows)
    for _ in dense.model.layers:
        stream.advance()
    with torch.no_grad():
        wanted = dense.model(rows).last_hidden_state
        found = dense.model.norm(stream.hidden_RSD)
    assert (found - wanted).norm() < 0.03 * wanted.norm()  # the stream is computed in bfloat16
