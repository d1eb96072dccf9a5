"""Rows sorted by expert: every pair has its row, and what is spread and gathered is a sum over pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from dwellmoe.experts.low_rank import Factors, Source, add_low_rank
from dwellmoe.experts.rows import gather, sort_by_expert, spread


@st.composite
def choices(draw):
    """`(indices_TK, E, multiple)`; ids of E and above are no routed experts."""
    experts, top_k = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    ids = st.integers(0, experts + 1)
    rows = draw(st.lists(st.lists(ids, min_size=top_k, max_size=top_k), min_size=1, max_size=9))
    return torch.tensor(rows), experts, draw(st.sampled_from([1, 4, 16]))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@settings(max_examples=60, deadline=None)
@given(choices())
def test_every_pair_has_a_row_of_its_expert_and_weight(choice):
    indices_TK, experts, multiple = choice
    weights_TK = drawn(*indices_TK.shape)
    rows = sort_by_expert(indices_TK, weights_TK, experts, multiple)
    sizes = torch.tensor([0, *rows.ends]).diff()
    assert (sizes >= 0).all() and (sizes % multiple == 0).all() and rows.ends[-1] == len(rows.token_S)
    routed_TK = indices_TK < experts
    row_P = rows.row_TK[routed_TK]
    assert len(row_P.unique()) == len(row_P)
    assert torch.equal(rows.expert_S()[row_P], indices_TK[routed_TK])
    assert torch.equal(rows.token_S[row_P], routed_TK.nonzero()[:, 0])
    assert torch.equal(rows.weight_S[row_P], weights_TK[routed_TK])
    others = torch.ones(len(rows.token_S), dtype=torch.bool).index_fill(0, row_P, False)
    assert not rows.weight_S[others].any()
    assert others[rows.row_TK[~routed_TK]].all()


@settings(max_examples=60, deadline=None)
@given(choices())
def test_weighted_rows_gather_into_the_sum_over_pairs(choice):
    indices_TK, experts, multiple = choice
    x_TD, weights_TK = drawn(len(indices_TK), 3), drawn(*indices_TK.shape)
    x_TD.requires_grad_()
    weights_TK.requires_grad_()
    rows = sort_by_expert(indices_TK, weights_TK, experts, multiple)
    scale_S = 1.0 + rows.expert_S()  # an expert that multiplies by its number
    out_TD = gather(spread(x_TD, rows) * (rows.weight_S * scale_S)[:, None], rows)
    factors_TK = (weights_TK * (1.0 + indices_TK)).masked_fill(indices_TK >= experts, 0)
    expected_TD = factors_TK.sum(1, keepdim=True) * x_TD
    torch.testing.assert_close(out_TD, expected_TD)
    found = torch.autograd.grad(out_TD.square().sum(), (x_TD, weights_TK))
    expected = torch.autograd.grad(expected_TD.square().sum(), (x_TD, weights_TK))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("ends", [[2, 2, 5], [0, 5, 5], [5, 5, 5]], ids=str)
def test_gradients_of_low_rank(ends):
    product_SO, kept_SI = drawn(5, 4), drawn(5, 3)
    a_ERI, b_ERO = drawn(3, 2, 3), drawn(3, 2, 4)
    inputs = [each.requires_grad_() for each in (product_SO, kept_SI, a_ERI, b_ERO)]

    def added(product_SO, kept_SI, a_ERI, b_ERO):
        x_SI = kept_SI * 2
        source = Source(kept_SI, lambda kept, part: kept[part] * 2)
        return add_low_rank(product_SO * 1, x_SI, Factors(a_ERI, b_ERO, 0.7), ends, source)

    assert gradcheck(added, inputs)
    with torch.no_grad():  # few rows without a gradient are computed together
        torch.testing.assert_close(added(*inputs), _each_row(product_SO, kept_SI * 2, a_ERI, b_ERO, ends))


def _each_row(product_SO, x_SI, a_ERI, b_ERO, ends):
    experts = [next(e for e, end in enumerate(ends) if row < end) for row in range(len(x_SI))]
    deltas = [x @ a_ERI[e].T @ b_ERO[e] * 0.7 for x, e in zip(x_SI, experts, strict=True)]
    return product_SO + torch.stack(deltas)
