"""Logits of packed weights under activations of 8 bits: what rounding leaves over is multiplied too, so that they are nearly those of exact activations."""
from __future__ import annotations

from functools import cache

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
from pellucid.weights.packed_rows import PackedRows
from tests.model.test_plan import cache_of, small
from tests.ops.test_packed import D, weights

V = 1100  # more than is scaled in one go, and no whole number of panels
BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.native)]
FACTS = [{}, {"unembed_bias": True, "logit_scale": 0.5, "logit_softcap": 20.0}, {"unembed_unit": True}]


@cache
def made_once(format: str) -> Tensor:
    return weights(format, V).bytes


def headed(ops: str, format: str, twins: dict[int, int] | None = None, **facts: object) -> tuple[Decoder, Tensor]:
    """A decoder whose head is packed, and the numbers of that. twins: rows that are the same as others."""
    decoder, made = Decoder(small(d_model=D, n_vocab=V, **facts), choose(ops, "int8")), torch.Generator().manual_seed(7)
    for parameter in decoder.requires_grad_(False).eval().parameters():
        parameter.data = torch.randn(parameter.shape, generator=made)
    packed = PackedRows(made_once(format).clone(), format)
    for twin, of in (twins or {}).items():
        packed.bytes[twin] = packed.bytes[of]
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


def near_ties(head_VD: Tensor, n: int) -> Tensor:
    """Rows for each of which two of the head's rows have the largest logit, and nearly the same."""
    noise = torch.Generator().manual_seed(4)
    longest_N = head_VD.norm(dim=-1).topk(40).indices
    a_ND, b_ND = (head_VD[longest_N[torch.randint(40, (n,), generator=noise)]].double() for _ in range(2))
    unit_ND = torch.nn.functional.normalize(a_ND, dim=-1) + torch.nn.functional.normalize(b_ND, dim=-1)
    apart_ND = a_ND - b_ND
    x_ND = 5 * unit_ND + torch.randn(n, D, generator=noise, dtype=torch.float64) * 0.1
    return (x_ND - apart_ND * ((x_ND * apart_ND).sum(-1) / apart_ND.square().sum(-1))[:, None]).float()


@pytest.mark.native
@pytest.mark.parametrize("format", native.formats() if native else [])
@pytest.mark.parametrize("variant", native.variants() if native else [])
def test_the_likeliest_is_that_of_all_logits(variant, format):
    """Found by bounds: among near ties too, where the second product decides, and of equal rows the first, in any company."""
    decoder, head_VD = headed("native", format, twins={70: 40, 71: 40, 640: 40, V - 1: 40})
    decoder.ops.variant = variant
    plan, x_TD = Plan(decoder, cache_of(decoder.spec), PAGE), torch.cat([hidden(10), near_ties(head_VD, 30)])
    x_TD[7], x_TD[9] = head_VD[40] * 99 / head_VD[40].norm(), 0.0
    expected = plan.unembed(x_TD).numpy().argmax(-1).tolist()
    assert expected[9] == 0
    assert not {70, 71, 640, V - 1} & set(expected)
    assert (rounded(x_TD) @ head_VD.T).argmax(-1).tolist() != expected, "the second product decides nothing here"
    assert plan.likeliest(x_TD) == expected
    assert [i for t in range(40) for i in plan.likeliest(x_TD[t : t + 1])] == expected
    x_TD[3, 5], x_TD[4, 6], x_TD[5] = torch.inf, torch.nan, 3e38
    assert plan.likeliest(x_TD)[:8] == [*expected[:3], -1, -1, -1, *expected[6:8]]


@pytest.mark.native
@pytest.mark.parametrize("variant", native.variants() if native else [])
def test_the_likeliest_of_dense_heads_and_of_heads_with_a_bias(variant):
    decoder, _ = headed("native", "Q6_K", unembed_bias=True)
    plain, _ = headed("native", "Q6_K")
    hold(plain.unembed, "weight", torch.randn(V, D, generator=torch.Generator().manual_seed(2)))
    for head in (decoder, plain):
        head.ops.variant = variant
        plan, x_TD = Plan(head, cache_of(head.spec), PAGE), hidden(40)
        assert plan.likeliest(x_TD) == plan.unembed(x_TD).numpy().argmax(-1).tolist()
        x_TD[3, 5] = torch.nan
        assert plan.likeliest(x_TD)[2:5].count(-1) == 1


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
