"""The formulas against the real decoder: counted, multiplied and cached."""
from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pellucid import cost
from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.ops.choose import choose
from pellucid.spec import Attention, DecoderSpec, Experts, FeedForward, LatentAttention, Layer, LayerInputs, Matrix, Norm, Rope

RMS, LAYER = Norm(eps=1e-5), Norm(kind="layer", eps=1e-5, bias=True)
MIXER = Attention(n_heads=6, n_kv_heads=3, d_head=14, scale=0.1, rope=Rope(theta=1e4, d_rotary=14))
MLP = FeedForward(d_ff=72)
WIDE = Layer(mixer=dataclasses.replace(MIXER, n_heads=4, n_kv_heads=2, d_head=10, rope=None), mlp=FeedForward(d_ff=40, gated=False, act="gelu", bias=True))
MIXED = Layer(mixer=MIXER, mlp=Experts(n_experts=5, n_active=2, renormalize=True, each=FeedForward(d_ff=20)))
SHARING = Layer(mixer=MIXER, mlp=dataclasses.replace(MIXED.mlp, router_bias=True, correction=True, shared=FeedForward(d_ff=33, bias=True), shared_gate=True))
BESIDE = Layer(mixer=MIXER, mlp=MLP, beside=dataclasses.replace(MIXED.mlp, router_norm=RMS, share_gain=True))
BORROWING = Layer(mixer=dataclasses.replace(MIXER, shares=0, qkv_bias=True, qk_norm=RMS), mlp=MLP)
MATRICES = Layer(mixer=Matrix(), mlp=Matrix())
BASE = DecoderSpec(family="test", n_vocab=101, n_ctx=64, d_model=48, layers=(Layer(mixer=MIXER, mlp=MLP),) * 2, norm=RMS)

INPUTS = LayerInputs(d_input=13, n_vocab=107, act="silu")
LATENT = LatentAttention(n_heads=5, d_plain=10, d_value=12, d_latent=20, d_query_latent=26, scale=0.1, rope=Rope(theta=1e4, d_rotary=6), norm=RMS)
LATENTS = [dataclasses.replace(LATENT, **facts) for facts in ({}, {"d_query_latent": None}, {"latent_bias": True}, {"out_bias": True}, {"norm": LAYER},
                                                              {"d_query_latent": None, "latent_bias": True})]
MIXERS = [*LATENTS] + [dataclasses.replace(MIXER, **facts) for facts in (
    {}, {"qkv_bias": True}, {"out_bias": True}, {"window": 5}, {"values_from_keys": True, "qkv_bias": True}, {"value_norm": RMS}, {"chunk": 5},
    {"sinks": True}, *({"qk_norm": norm, "qk_norm_over": over} for norm in (RMS, LAYER)
                                                                for over in ("head", "each_head", "width")))]
MLPS = [FeedForward(d_ff=72, gated=gated, bias=bias) for gated, bias in itertools.product((False, True), repeat=2)] + [
    FeedForward(d_ff=72, gated=False, xielu=True)]
WIRINGS = [{"tied": True}, {"unembed_bias": True}, {"learned_positions": 33}, {"norm": LAYER}, {"norm": Norm(eps=1e-5, weight=False)},
           {"parallel": True}, {"parallel": True, "shared_norm": True}, {"norm_out": True}, {"norm_in": False, "norm_out": True},
           {"norm_in": False, "norm_stream": "before"}, {"norm_in": False, "norm_stream": "after", "norm": LAYER, "final_norm": False},
           {"embed_norm": True, "norm": LAYER}, {"d_embed": 20}, {"d_embed": 20, "tied": True, "sinusoidal_positions": True},
           {"layers": (WIDE, MIXED, WIDE)}, {"layers": (SHARING,)}, {"layers": (dataclasses.replace(WIDE, scaled=True),)},
           {"layers": (WIDE, Layer(mixer=None, mlp=MLP), Layer(mixer=MIXER, mlp=None))}, {"layers": (Layer(mixer=Matrix(), mlp=MLP), MATRICES)},
           {"layers": (Layer(mixer=None, mlp=MLP),), "norm_in": False, "norm_out": True}, {"layers": (dataclasses.replace(
               SHARING, mlp=dataclasses.replace(SHARING.mlp, shared_gate=False, correction=False)),)},
           {"layers": (BESIDE, WIDE), "norm_out": True}, {"layers": (MIXED, WIDE, BORROWING)},
           {"layer_inputs": INPUTS}, {"layer_inputs": INPUTS, "norm": LAYER}]
SPECS = ([BASE] + [dataclasses.replace(BASE, layers=(Layer(mixer=mixer, mlp=MLP), WIDE)) for mixer in MIXERS]
         + [dataclasses.replace(BASE, layers=(Layer(mixer=MIXER, mlp=mlp),)) for mlp in MLPS] + [dataclasses.replace(BASE, **facts) for facts in WIRINGS])


@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_parameters_are_those_of_the_real_decoder(spec: DecoderSpec) -> None:
    with torch.device("meta"):
        decoder = Decoder(spec, choose("reference"))
    assert cost.parameters(spec) == sum(p.numel() for p in decoder.parameters())


def test_active_parameters_leave_out_idle_experts_and_tables() -> None:
    assert cost.active_parameters(BASE) == cost.parameters(BASE) - 101 * 48
    assert cost.active_parameters(dataclasses.replace(BASE, tied=True)) == cost.active_parameters(BASE)
    narrow = dataclasses.replace(BASE, d_embed=20)
    assert cost.active_parameters(narrow) == cost.parameters(narrow) - 101 * 20
    for mixed in (dataclasses.replace(BASE, layers=(MIXED,)), dataclasses.replace(BASE, layers=(BESIDE,), norm_out=True)):
        assert cost.parameters(mixed) - cost.active_parameters(mixed) == 101 * 48 + 3 * 3 * 48 * 20
    inputs = dataclasses.replace(BASE, layer_inputs=INPUTS)
    assert cost.parameters(inputs) - cost.active_parameters(inputs) == 101 * 48 + 107 * 2 * 13


@pytest.mark.parametrize("spec", [BASE, dataclasses.replace(BASE, d_embed=20),
                                  dataclasses.replace(BASE, layers=(WIDE, MIXED, SHARING, Layer(mixer=None, mlp=MLP), Layer(mixer=MIXER, mlp=None)), tied=True),
                                  dataclasses.replace(BASE, layers=(Layer(mixer=dataclasses.replace(MIXER, window=5), mlp=MLP),)),
                                  dataclasses.replace(BASE, layers=(BESIDE, MATRICES, BORROWING), norm_out=True, layer_inputs=INPUTS),
                                  *(dataclasses.replace(BASE, layers=(Layer(mixer=mixer, mlp=MLP),)) for mixer in LATENTS[:3])])
def test_flops_are_what_torch_counts(spec: DecoderSpec) -> None:
    decoder = Decoder(spec, choose("reference"))
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    n_context = 9
    cache = Cache(spec)
    with torch.no_grad():
        decoder(torch.arange(n_context - 1), cache=cache)
        with FlopCounterMode(display=False) as counter:
            decoder.unembed(decoder(torch.tensor([3]), cache=cache))
    mixers = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    windowed = any(mixer.window is not None for mixer in mixers)
    hidden = sum(4 * mixer.n_heads * mixer.d_head * (n_context - cost.seen(mixer, n_context)) for mixer in mixers)
    assert (hidden > 0) == windowed  # the reference computes masked scores too; a kernel that knows the window does not
    mixtures = [mlp for layer in spec.layers for mlp in (layer.mlp, layer.beside) if isinstance(mlp, Experts)]
    sums = sum(2 * mlp.n_active * spec.d_model for mlp in mixtures)  # of what one token's experts wrote, which is computed as a product
    assert counter.get_total_flops() == cost.flops_per_token(spec, n_context) + hidden + sums


@pytest.mark.parametrize(("spec", "cached"), [(BASE, 2 * 2 * 3 * 14), (dataclasses.replace(BASE, layers=(WIDE, MIXED, WIDE)), 2 * (20 + 42 + 20)),
                                              (dataclasses.replace(BASE, layers=(MIXED, WIDE, BORROWING)), 2 * (42 + 20)),
                                              (dataclasses.replace(BASE, layers=(Layer(mixer=LATENT, mlp=MLP), WIDE)), 20 + 6 + 2 * 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_bytes_are_those_of_what_the_mixers_keep(spec: DecoderSpec, cached: int, dtype: torch.dtype) -> None:
    kept: list[int] = []

    class Watched(Cache):
        def extend(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            held = super().extend(*args, **kwargs)
            kept.append(sum(x.nbytes for x in held))
            return held

    decoder = Decoder(spec, choose("reference")).to(dtype)
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.1)
    with torch.no_grad():
        decoder(torch.arange(7), cache=Watched(spec))
    assert sum(kept) == 7 * cost.cache_bytes_per_token(spec, dtype.itemsize) == 7 * cached * dtype.itemsize


def test_a_well_known_model_has_its_well_known_size() -> None:
    """Llama 2 7B: 6,738,415,616 parameters, as its repository counts them."""
    mixer = Attention(n_heads=32, n_kv_heads=32, d_head=128, scale=128 ** -0.5, rope=Rope(theta=1e4, d_rotary=128))
    spec = DecoderSpec(family="llama", n_vocab=32_000, n_ctx=4096, d_model=4096, layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=11_008)),) * 32, norm=RMS)
    assert cost.parameters(spec) == 6_738_415_616
    assert cost.cache_bytes_per_token(spec, 2) == 512 * 1024
