"""Routed experts in the native plan: the decoder's choices and numbers, and no bit that depends on the company."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from pellucid.model.experts import Router
from pellucid.model.parts import Project, hold
from pellucid.ops.panels import Panels, native
from pellucid.ops.unpack import unpack
from pellucid.spec import DecoderSpec, Experts, FeedForward, Layer
from pellucid.weights.packed_rows import PackedRows
from tests.families.build import TOLERANCE, error, logits, ours
from tests.model.test_plan import Run, describe, in_passes, random_decoder, random_ids, small

pytestmark = pytest.mark.native

MANY = Experts(n_experts=11, n_active=8, renormalize=True, each=FeedForward(d_ff=40), shared=FeedForward(d_ff=56), shared_gate=True)
BEFORE = Experts(n_experts=6, n_active=1, scoring="sigmoid", renormalize=False, scale_input=True, each=FeedForward(d_ff=24, gated=False, act="gelu"))
VARIANTS = native.variants() if native else []


def mixed(*mixtures: Experts, **facts: object) -> DecoderSpec:
    layers = small().layers
    return small(layers=tuple(Layer(mixer=layers[i].mixer, mlp=mixture) for i, mixture in enumerate(mixtures)), **facts)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_are_the_same_bits_in_any_company(dtype, variant):
    """Alone, where nothing is gathered; some, whose experts overlap; and more pairs than are computed in one go."""
    decoder = random_decoder(mixed(MANY, BEFORE), dtype)
    decoder.ops.variant = variant
    ids = torch.tensor(random_ids(560))
    whole = in_passes(decoder, ids, 560)
    assert torch.equal(in_passes(decoder, ids[:40]), whole[:40])
    assert torch.equal(in_passes(decoder, ids, 3, 17, 140, 400), whole)


def test_long_passes_are_the_decoders():
    decoder, tokens_T = random_decoder(mixed(MANY, BEFORE)), torch.tensor(random_ids(560))
    assert error(in_passes(decoder, tokens_T, 560), logits(ours(decoder.spec, decoder.state_dict()), tokens_T)) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_packed_mixture_is_the_decoders(variant):
    """Experts in blocks, routers and the shared one's gate in plain numbers, as GGUF files have them."""
    mixture = dataclasses.replace(MANY, each=FeedForward(d_ff=64), shared=FeedForward(d_ff=96))
    decoder = random_decoder(mixed(mixture, mixture, d_model=64))
    decoder.ops.variant = variant
    for module in decoder.blocks.modules():
        if not isinstance(module, Project):
            continue
        weight = module.weight
        plain = PackedRows(weight.contiguous().view(torch.uint8), "F32")
        if isinstance(module, Router) or len(weight) == 1:
            hold(module, "weight", plain)
        elif weight.shape[1] % 32 == 0:
            hold(module, "weight", decoder.ops.prepare(q8_0(weight)))
    assert describe(decoder) == " · one native plan a pass of up to 16 tokens"  # attention's output, 84 columns, is in no blocks
    tokens_T = torch.tensor(random_ids(70))
    found, expected = in_passes(decoder, tokens_T, 50, 7), logits(decoder, tokens_T)
    # Rounding to 8 bits makes steps of what differs in the last bits: of a few numbers a step.
    assert error(found, expected) < 2e-2
    assert (found - expected).norm() < 3e-3 * expected.norm()
    run = Run(decoder)
    slot = run.begin(tokens_T.tolist())
    run.plan.seconds()
    run.hidden((slot, tokens_T.tolist(), 5))
    assert {"route", "experts"} <= run.plan.seconds().keys()


def q8_0(weight: torch.Tensor) -> PackedRows:
    """Blocks of 32 whole numbers and a float16 scale."""
    blocks = weight.unflatten(1, (-1, 32))
    scale = (blocks.abs().amax(-1, keepdim=True) / 127).half()
    codes = (blocks / scale.float()).round().to(torch.int8)
    packed = PackedRows(torch.cat([scale.view(torch.uint8), codes.view(torch.uint8)], -1).flatten(1).contiguous(), "Q8_0")
    assert (unpack(packed) - weight).abs().max() < 0.01 * weight.abs().max()
    return packed


def test_equals_are_chosen_by_their_numbers_and_what_is_no_number_is_noticed():
    decoder, ids = random_decoder(mixed(dataclasses.replace(MANY, n_active=2, shared=None, shared_gate=False))), random_ids(9)
    router = decoder.blocks[0].mlp.router
    router.weight.zero_()
    for e in range(2, 11):
        for parameter in decoder.blocks[0].mlp.experts[e].parameters():
            parameter.fill_(torch.nan)  # nobody visits them
    run = Run(decoder)
    run.hidden((run.begin(ids), ids, 9))
    assert run.plan.finite
    router.weight[4, 3] = torch.nan
    run = Run(decoder)
    run.hidden((run.begin(ids), ids, 9))
    assert not run.plan.finite


def test_panels_of_every_expert_make_a_plan_for_passes_of_any_length():
    mixture = dataclasses.replace(MANY, each=FeedForward(d_ff=64), shared=None, shared_gate=False)
    mixer = dataclasses.replace(small().layers[0].mixer, d_head=16)
    decoder = random_decoder(small(d_model=64, layers=(Layer(mixer=mixer, mlp=mixture),)))
    for module in decoder.blocks.modules():
        if isinstance(module, Project) and not isinstance(module, Router):
            hold(module, "weight", decoder.ops.prepare(q8_0(module.weight)))
            assert isinstance(module.weight, Panels)
    assert describe(decoder) == " · one native plan a pass"
