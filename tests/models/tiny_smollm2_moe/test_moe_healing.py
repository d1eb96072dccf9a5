from typing import Any

import pytest
import torch

from moe_activations import TwinStream
from moe_heal import ALL_NEURONS, heal_block, mean_error, refit_down
from moe_routed_share import changed_routing, random_experts, without_experts
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


@pytest.fixture
def moe(dense, shape) -> Any:
    """A MoE of random blocks around the dense model's attention."""
    torch.manual_seed(0)
    return new_moe(dense, shape)


def test_a_resumed_stream_goes_on_where_it_was(dense, moe, rows, tmp_path):
    first, tasks = TwinStream.begin(dense, moe, rows), []
    first.advance(lambda *_: None)
    first.save(tmp_path / "stream.safetensors")
    resumed = TwinStream.resume(dense, moe, tmp_path / "stream.safetensors")
    assert resumed.layer == 1
    for stream in (first, resumed):
        stream.advance(lambda *pair: tasks.append(pair))
    assert all(torch.equal(a, b) for a, b in zip(*tasks, strict=True))


def test_both_streams_are_their_models_own(dense, moe, rows):
    stream = TwinStream.begin(dense, moe, rows)
    for _ in dense.model.layers:
        stream.advance(lambda *_: None)
    for model, hidden_RSD in ((dense, stream.dense_RSD), (moe, stream.moe_RSD)):
        with torch.no_grad():
            wanted, found = model.model(rows).last_hidden_state, model.model.norm(hidden_RSD)
        assert (found - wanted).norm() < 0.05 * wanted.norm()  # the streams are computed in bfloat16


def test_a_block_is_asked_to_make_up_for_those_before_it(dense, moe, rows):
    """One that gives just what it is asked for brings the MoE's states back to the dense model's."""
    stream, tasks = TwinStream.begin(dense, moe, rows), []
    stream.advance(lambda *_: None)
    before_RSD = stream.moe_RSD
    stream.advance(lambda *pair: tasks.append(pair))
    layer = moe.model.layers[1]
    with torch.no_grad():
        between_RSD = stream.moe_RSD - layer.mlp(tasks[0][0].view_as(before_RSD))
    given_RSD = tasks[0][1].view_as(before_RSD)
    assert (between_RSD + given_RSD - stream.dense_RSD).norm() < 0.02 * stream.dense_RSD.norm()


def test_routing_is_changed_within_the_block_only(moe, rows):
    def logits():
        with torch.no_grad():
            return moe(rows[:2]).logits

    before = logits()
    with changed_routing(moe, without_experts):
        off = logits()
    with changed_routing(moe, random_experts(seed=0)):
        drawn = logits()
    with changed_routing(moe, random_experts(seed=0)):
        assert torch.equal(logits(), drawn)
    assert torch.equal(logits(), before)
    for decoder in moe.model.layers:
        torch.nn.init.zeros_(decoder.mlp.experts.down_proj)
    torch.testing.assert_close(logits(), off)
    assert not torch.equal(before, off) and not torch.equal(drawn, before)
