"""Logits of packed weights under activations of 8 bits: what rounding leaves over is multiplied too, so that they are nearly those of exact activations."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.engine.group import PAGE
from pellucid.model.decoder import Decoder
from pellucid.model.parts import hold
from pellucid.model.plan import Plan
from pellucid.ops.choose import choose
from pellucid.ops.packed import rounded
from pellucid.ops.panels import native
from pellucid.ops.unpack import unpack
from tests.model.test_plan import cache_of, small
from tests.ops.test_packed import D, weights

V = 1100  # more than is scaled in one go, and no whole number of panels
BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.native)]
FACTS = [{}, {"unembed_bias": True, "logit_scale": 0.5, "logit_softcap": 20.0}, {"unembed_unit": True}]


def headed(ops: str, format: str, **facts: object) -> tuple[Decoder, Tensor]:
    """A decoder whose head is packed, and the numbers of that."""
    decoder, made = Decoder(small(d_model=D, n_vocab=V, **facts), choose(ops, "int8")), torch.Generator().manual_seed(7)
    for parameter in decoder.requires_grad_(False).eval().parameters():
        parameter.data = torch.randn(parameter.shape, generator=made)
    packed = weights(format, V)
    hold(decoder.unembed, "weight", decoder.ops.prepare(packed))
    return decoder, unpack(packed)


def hidden(n: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(n)) * 3


def exact(decoder: Decoder, head_VD: Tensor, x_TD: Tensor) -> Tensor:
    head = head_VD.double()
    y = x_TD.double() @ (head / head.norm(dim=-1, keepdim=True) if decoder.unembed.unit else head).T
    y = (y if decoder.unembed.bias is None else y + decoder.unembed.bias.double()) * decoder.unembed.scale
    return y if decoder.unembed.softcap is None else decoder.unembed.softcap * torch.tanh(y / decoder.unembed.softcap)


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: "-".join(facts) or "plain")
@pytest.mark.parametrize("format", ["Q4_0", "Q6_K"])
@pytest.mark.parametrize("ops", BACKENDS)
def test_logits_are_a_hundred_times_nearer_to_exact_ones_than_rounding_leaves_them(ops, format, facts):
    decoder, head_VD = headed(ops, format, **facts)
    x_TD = hidden(5)
    expected, coarse = exact(decoder, head_VD, x_TD), exact(decoder, head_VD, rounded(x_TD))
    with torch.inference_mode():
        found = decoder.unembed(x_TD)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.01 * (coarse - expected).norm()


@pytest.mark.native
@pytest.mark.parametrize("variant", native.variants() if native else [])
@pytest.mark.parametrize("facts", FACTS[:2], ids=lambda facts: "-".join(facts) or "plain")
def test_the_plan_does_the_same_and_no_company_moves_a_bit(variant, facts):
    decoder, head_VD = headed("native", "Q6_K", **facts)
    decoder.ops.variant = variant
    plan, x_TD = Plan(decoder, cache_of(decoder.spec), PAGE), hidden(70)  # more than are computed in one go
    found, coarse, expected = plan.unembed(x_TD), exact(decoder, head_VD, rounded(x_TD)), exact(decoder, head_VD, x_TD)
    assert (found - expected).norm() < 0.01 * (coarse - expected).norm()
    for start, stop in ((0, 1), (31, 33), (40, 70)):
        assert torch.equal(plan.unembed(x_TD[start:stop]), found[start:stop])
    x_TD[3, 5] = torch.inf
    assert plan.unembed(x_TD)[:5].isfinite().all(-1).tolist() == [True] * 3 + [False, True]


def test_exact_activations_and_dense_heads_are_multiplied_once(monkeypatch):
    calls = []
    decoder, _ = headed("reference", "Q4_0")
    multiply = decoder.ops.matmul
    monkeypatch.setattr(decoder.ops, "matmul", lambda *args: calls.append(1) or multiply(*args))
    decoder.unembed(hidden(2))
    decoder.ops.activations = "exact"
    decoder.unembed(hidden(2))
    decoder.ops.activations = "int8"
    hold(decoder.unembed, "weight", torch.randn(V, D))
    decoder.unembed(hidden(2))
    assert len(calls) == 2 + 1 + 1
