"""LocalityLoss in a plain training loop: its value, its gradient, and calls that cannot be."""

from typing import Any

import pytest
import torch

from dwellmoe.data.collate import PaddingCollator
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers, gate_matrix
from dwellmoe.locality.loss import LocalityLoss
from dwellmoe.locality.monitor import RoutingMonitor
from dwellmoe.locality.objectives import load_objective
from dwellmoe.locality.pairs import pair_mask, segments_of
from dwellmoe.locality.rates import ecr_per_layer
from dwellmoe.routing import RouterTap
from tests.test_trainer import rows
from tests.tiny_models import FAMILIES, tiny_model

OBJECTIVE = "cache_miss:budget=50%"


def batch_of(count=3, seed=0):
    return PaddingCollator(0)(rows(count, seed=seed))


def run(model, batch):
    return model(**{name: value for name, value in batch.items() if name != "segment_ids"})


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("on_prompt", [True, False])
@pytest.mark.parametrize("layers", [None, [1]])
def test_it_is_the_objective_on_the_recorded_logits(on_prompt, layers):
    model, batch, seen = tiny_model("olmoe"), batch_of(), []
    counted = [layer for layer in find_moe_layers(model) if layers is None or layer.layer_id in layers]
    with RouterTap(model, counted, [seen.append]):
        run(model, batch)
    shape = batch["input_ids"].shape
    expected = load_objective(OBJECTIVE)(
        torch.stack([output.logits_TE.unflatten(0, shape) for output in seen]),
        torch.stack([output.indices_TK.unflatten(0, shape) for output in seen]),
        pair_mask(batch["segment_ids"], batch["labels"], on_prompt),
    )
    with LocalityLoss(model, OBJECTIVE, weight=0.5, layers=layers, on_prompt=on_prompt) as locality:
        run(model, batch)
        assert locality(batch).item() == 0.5 * expected.item()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_loop_makes_the_router_more_local(family):
    model, batch = tiny_model(family), batch_of()
    before, found = hooks(model), []
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with LocalityLoss(model, "js", weight=5.0) as locality:
        for _ in range(4):
            optimizer.zero_grad()
            loss = run(model, batch).loss + (term := locality(batch))
            loss.backward()
            found.append(term.item())
            optimizer.step()
    assert found[-1] < found[0]
    assert hooks(model) == before, "a hook was left behind"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "zaya"])
def test_the_objective_counts_the_experts_that_run(family):
    """With a narrow membership `overlap` is 1 - ECR, whatever a router ranks its experts by: logits, or score
    + bias within groups. (A token of ZAYA may skip its experts.)
    """
    model, batch = tiny_model(family), batch_of()
    for name, weight in (*model.named_buffers(), *model.named_parameters()):
        if "correction_bias" in name or "expert_bias" in name:
            torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad(), LocalityLoss(model, "overlap:width=0.0001") as locality:
        run(model, batch)
        found = locality(batch).item()
    assert found == pytest.approx(1 - locality.ecr, abs=0.01)  # a near tie


def test_the_gradient_reaches_a_gate_whose_choice_goes_by_biases_and_groups():
    model, batch = tiny_model("deepseek_v3"), batch_of()
    layers = find_moe_layers(model)
    torch.nn.init.normal_(model.get_buffer(f"{layers[0].router}.e_score_correction_bias"))
    with LocalityLoss(model, OBJECTIVE) as locality:
        run(model, batch)
        locality(batch).backward()
    gate = gate_matrix(model, layers[0])[1]
    assert gate.grad is not None and gate.grad.abs().sum() > 0 and gate.grad.isfinite().all()


def test_the_gradient_reaches_the_gate():
    model, batch = tiny_model("olmoe"), batch_of()
    with LocalityLoss(model, OBJECTIVE) as locality:
        run(model, batch)
        locality(batch).backward()
    gate = gate_matrix(model, find_moe_layers(model)[0])[1]
    assert gate.grad is not None and gate.grad.abs().sum() > 0


def test_the_ecr_is_that_of_the_simulator():
    model, batch = tiny_model("olmoe"), batch_of()
    monitor = RoutingMonitor(find_moe_layers(model))
    with RouterTap(model, find_moe_layers(model), [monitor.recorder]):
        run(model, batch)
    monitor.add(batch["segment_ids"])
    with LocalityLoss(model) as locality:
        with pytest.raises(UserError):
            _ = locality.ecr
        run(model, batch)
        locality(batch)
    trace: Any = monitor.trace()
    assert locality.ecr == pytest.approx(ecr_per_layer(trace).mean())


def test_calls_that_cannot_be():
    model, batch = tiny_model("olmoe"), batch_of()
    with LocalityLoss(model) as locality:
        with pytest.raises(UserError, match="forward pass"):
            locality(batch)
        run(model, batch)
        with pytest.raises(UserError, match=r"2 x 13 tokens.* 42 tokens"):
            locality(batch_of(2))
        locality(batch)
        with pytest.raises(UserError, match="forward pass"):
            locality(batch)
    run(model, batch)
    with pytest.raises(UserError, match="forward pass"):
        locality(batch)


def test_wrong_settings():
    model, batch = tiny_model("olmoe"), batch_of()
    with pytest.raises(UserError, match=r"layers: 7 .*choose from \[0, 1, 2\]"):
        LocalityLoss(model, layers=[0, 7])
    with pytest.raises(UserError, match="jss"):
        LocalityLoss(model, "jss")
    with LocalityLoss(model, on_prompt=False) as locality, pytest.raises(UserError, match="labels"):
        run(model, batch)
        locality({"input_ids": batch["input_ids"]})


class TestSegments:
    """Which tokens are consecutive, from whatever the batch holds."""

    ids = torch.tensor([[5, 6, 7, 8]])

    def test_segment_ids_come_first(self):
        segments, mask = torch.tensor([[1, 1, 2, 2]]), torch.tensor([[1, 1, 1, 1]])
        assert segments_of({"segment_ids": segments, "attention_mask": mask}) is segments

    def test_each_row_of_an_attention_mask_is_a_request(self):
        assert segments_of({"attention_mask": torch.tensor([[0, 1, 1, 1]])}).tolist() == [[0, 1, 1, 1]]
        with pytest.raises(UserError, match="attention_mask"):
            segments_of({"attention_mask": torch.ones(1, 1, 4, 4)})

    def test_positions_begin_anew_with_each_request(self):
        batch = {"input_ids": self.ids, "position_ids": torch.tensor([[0, 1, 0, 1]])}
        assert segments_of(batch).tolist() == [[1, 1, 2, 2]]

    def test_token_ids_alone_are_one_request_a_row(self):
        assert segments_of({"input_ids": self.ids}).tolist() == [[1, 1, 1, 1]]
        with pytest.raises(UserError, match="segment_ids"):
            segments_of({})
