"""Mixtures of experts: what is chosen is all that is computed, and it is what the formula says."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.model.experts import MixtureOfExperts
from pellucid.ops.choose import BACKENDS, choose
from pellucid.ops.reference import Reference
from pellucid.spec import Experts, FeedForward

D, F = 10, 6
WAYS = {"plain": {}, "bare": {"renormalize": False, "each": FeedForward(d_ff=F, gated=False, act="gelu", bias=True)},
        "input": {"scale_input": True, "scoring": "sigmoid"}, "corrected": {"correction": True, "share_gain": True, "router_bias": True},
        "shared": {"shared": FeedForward(d_ff=4)}, "gated": {"shared": FeedForward(d_ff=4), "shared_gate": True}}


class Counting(Reference):
    """Notes every product: the weight and how many rows it met."""

    def __init__(self) -> None:
        self.products: list[tuple[Tensor, int]] = []

    def matmul(self, x_TD: Tensor, weight_FD: Tensor, bias_F: Tensor | None = None) -> Tensor:
        self.products.append((weight_FD, x_TD.shape[0]))
        return super().matmul(x_TD, weight_FD, bias_F)


def mixture(n_experts: int, n_active: int, *, ops: Any = None, dtype: torch.dtype = torch.float32, **facts: Any) -> MixtureOfExperts:
    """One layer with random numbers everywhere."""
    spec = Experts(**{"n_experts": n_experts, "n_active": n_active, "renormalize": True, "each": FeedForward(d_ff=F), **facts})
    layer, noise = MixtureOfExperts(ops or Reference(), D, spec), torch.Generator().manual_seed(0)
    for p in layer.parameters():
        p.data = torch.randn(p.shape, generator=noise).to(dtype)
    return layer


def tokens(T: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def choices(layer: MixtureOfExperts, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """The shares and numbers of the experts that each token visits."""
    share_TA, expert_TA = layer.ops.route(layer.router(x_TD), layer.router.correction, layer.spec)
    return (share_TA if layer.router.gain is None else share_TA * layer.router.gain[expert_TA]), expert_TA


def one_by_one(layer: MixtureOfExperts, x_TD: Tensor) -> Tensor:
    """The layer's formula, a token and a choice at a time."""
    rows, (share_TA, expert_TA) = [], choices(layer, x_TD)
    for x_D, shares, experts in zip(x_TD, share_TA, expert_TA.tolist(), strict=True):
        x_1D = x_D[None]
        visits = [(layer.experts[e], s) for e, s in zip(experts, shares, strict=True)]
        rows.append(sum(expert(x_1D * s) if layer.spec.scale_input else expert(x_1D) * s for expert, s in visits))
        if layer.shared is not None:
            rows[-1] = rows[-1] + layer.shared(x_1D) * (1.0 if layer.shared_gate is None else torch.sigmoid(layer.shared_gate(x_1D)))
    return torch.cat(rows)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "n_experts", "n_active"), [(1, 5, 1), (1, 7, 3), (2, 9, 2), (33, 7, 3), (40, 3, 3), (6, 64, 4)])
def test_a_mixture_is_its_formula_token_by_token(T, n_experts, n_active, backend, how):
    layer, x_TD = mixture(n_experts, n_active, ops=choose(backend), **WAYS[how]), tokens(T)
    with torch.inference_mode():
        found, expected = layer(x_TD), one_by_one(layer, x_TD)
    assert found.dtype == x_TD.dtype
    assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("T", "n_experts", "n_active"), [(1, 8, 1), (1, 8, 3), (2, 64, 8), (64, 8, 2), (100, 16, 16)])
def test_only_the_chosen_are_multiplied_each_once_and_with_its_own_tokens(T, n_experts, n_active, how):
    """Rows through the experts are T * A, however many experts there are."""
    ops = Counting()
    layer, x_TD = mixture(n_experts, n_active, ops=ops, **WAYS[how]), tokens(T)
    _, expert_TA = choices(layer, x_TD)
    ops.products.clear()
    layer(x_TD)
    rows = {e: int((expert_TA == e).sum()) for e in expert_TA.unique().tolist()}
    assert sum(rows.values()) == T * n_active
    for e, expert in enumerate(layer.experts):
        for name, weight in expert.named_parameters():
            if name.endswith("weight"):
                assert [n for w, n in ops.products if w is weight] == ([rows[e]] if e in rows else []), f"expert {e}, {name}"
    rest = [n for w, n in ops.products if not any(w is p for p in layer.experts.parameters())]
    assert rest == [T] * (1 + (0 if layer.shared is None else 3) + (layer.shared_gate is not None))  # the router, and what every token visits


def test_what_nobody_chose_is_never_read():
    layer, x_TD = mixture(32, 2), tokens(5)
    expected, chosen = layer(x_TD), set(choices(layer, x_TD)[1].flatten().tolist())
    assert len(chosen) < 11
    for e in set(range(32)) - chosen:
        for p in layer.experts[e].parameters():
            p.data.fill_(torch.nan)
    assert torch.equal(layer(x_TD), expected)


@pytest.mark.parametrize("T", [1, 23])
@pytest.mark.parametrize("how", WAYS)
def test_gradients_are_those_of_the_formula_and_reach_the_chosen_alone(how, T):
    layer, x_TD = mixture(7, 2, **WAYS[how]), tokens(T)
    grads = []
    for forward in (layer, lambda x_TD: one_by_one(layer, x_TD)):
        layer.zero_grad()
        x = x_TD.clone().requires_grad_()
        forward(x).square().sum().backward()
        grads.append({"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}})
    found, expected = grads
    idle = {name for name in found if found[name] is None}
    assert idle == {name for name in expected if expected[name] is None}
    chosen = set(choices(layer, x_TD)[1].flatten().tolist())
    assert {int(name.split(".")[1]) for name in idle if name.startswith("experts.")} == set(range(7)) - chosen
    for name in found.keys() - idle:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max())), name


def test_tokens_in_another_order_get_the_same():
    layer, x_TD = mixture(9, 3), tokens(31)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(layer(x_TD[order]), layer(x_TD)[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("T", [1, 12])
def test_in_bfloat16_the_sum_over_experts_is_rounded_once(T):
    layer, x_TD = mixture(6, 6, dtype=torch.bfloat16), tokens(T, torch.bfloat16)  # all are chosen: every expert meets the same rows here and there
    share_TA, expert_TA = choices(layer, x_TD)
    share_TX = torch.zeros(T, 6).scatter(1, expert_TA, share_TA)
    with torch.inference_mode():
        exact = sum(layer.experts[e](x_TD).double() * share_TX[:, e, None] for e in range(6))
        found = layer(x_TD)
    assert found.dtype == torch.bfloat16
    half = torch.finfo(torch.bfloat16).eps / 2
    assert ((found.double() - exact).abs() <= half * exact.abs() * 1.001 + 1e-6).all()


def test_a_wider_stream_stays_as_wide():
    layer, x_TD = mixture(6, 2, dtype=torch.float64), tokens(7, torch.float64)
    assert layer(x_TD).dtype == torch.float64
    assert layer(x_TD[:1]).dtype == torch.float64
    assert (layer(x_TD) - one_by_one(layer, x_TD)).abs().max() < 1e-12 * one_by_one(layer, x_TD).abs().max()


def test_no_tokens_give_no_rows():
    assert mixture(6, 2)(tokens(0)).shape == (0, D)
