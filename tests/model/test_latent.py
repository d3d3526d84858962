"""Latent attention computes one thing in two orders, and takes the cheaper."""
from __future__ import annotations

import dataclasses

import pytest
import torch

from pellucid.model.cache import Cache, Held
from pellucid.model.decoder import Rows
from pellucid.model.latent import CompressedAttention
from pellucid.model.tables import Tables
from pellucid.ops.choose import BACKENDS, choose
from pellucid.spec import DecoderSpec, FeedForward, LatentAttention, Layer, Norm, Rope
from tests.families.build import TOLERANCE, error

MIXER = LatentAttention(n_heads=5, d_plain=10, d_value=16, d_latent=28, d_query_latent=34, scale=0.3, rope=Rope(theta=50.0, d_rotary=12), norm=Norm(eps=1e-6))
PUBLISHED = LatentAttention(n_heads=128, d_plain=128, d_value=128, d_latent=512, d_query_latent=1536, scale=0.1, rope=Rope(theta=1e4, d_rotary=64),
                            norm=Norm(eps=1e-6))  # DeepSeek-V3's sizes: https://arxiv.org/abs/2412.19437, section 4.2


def attention(mixer: LatentAttention = MIXER, ops: str = "reference") -> CompressedAttention:
    attention, noise = CompressedAttention(choose(ops), 48, mixer, 0), torch.Generator().manual_seed(0)
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=1.5 * p.shape[-1] ** -0.5, generator=noise)
    return attention


@pytest.mark.parametrize("ops", BACKENDS)
@torch.inference_mode()
def test_both_orders_give_the_same_sum(ops: str) -> None:
    module, noise = attention(ops=ops), torch.Generator().manual_seed(1)
    q_lengths, k_lengths = (3, 1, 5), (9, 4, 5)
    q_THN, q_THR, kept_S1E = (torch.randn(shape, generator=noise) for shape in ((9, 5, 10), (9, 5, 12), (18, 1, 40)))
    held = Held((kept_S1E,), k_lengths)
    expanded = module._expanded(q_THN, q_THR, held, q_lengths)
    assert expanded.shape == (9, 5, 16)
    assert error(module._absorbed(q_THN, q_THR, held, q_lengths), expanded) < TOLERANCE


@pytest.mark.parametrize("mixer", [MIXER, PUBLISHED], ids=["small", "published"])
def test_a_prompt_is_expanded_and_decoding_is_absorbed(mixer: LatentAttention) -> None:
    with torch.device("meta"):
        module = attention(mixer)
    assert not module._absorbs((40,), (40,))  # each token's latent is brought to the heads once, for all the queries
    assert module._absorbs((1,), (41,))
    assert module._absorbs((1, 1, 1), (41, 7, 2000))
    assert not module._absorbs((512,), (1024,))


def test_the_cache_keeps_the_latent_and_the_shared_key_and_nothing_else() -> None:
    spec = DecoderSpec(family="test", n_vocab=9, n_ctx=8, d_model=48, layers=(Layer(mixer=MIXER, mlp=FeedForward(d_ff=5)),), norm=Norm(eps=1e-6))
    kept: list[torch.Size] = []

    class Watched(Cache):
        def extend(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            held = super().extend(*args, **kwargs)
            kept.extend(x.shape for x in held)
            return held

    tables = Tables()
    tables[MIXER.rope] = torch.ones(7, 12), torch.zeros(7, 12)
    attention()(torch.randn(7, 48), tables, Rows.of(7), Watched(spec))
    assert kept == [(7, 1, 28 + 12)]
    assert MIXER.n_cached == 40
    assert PUBLISHED.n_cached == 576  # "equal to GQA with only 2.25 groups": https://arxiv.org/abs/2405.04434, section 2.1.4
    assert PUBLISHED.n_cached == 2.25 * 2 * 128


@pytest.mark.parametrize("size", ["n_heads", "d_plain", "d_value", "d_latent", "d_query_latent"])
def test_an_impossible_latent_attention_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match=f"{size} is 0, and no decoder has fewer than 1"):
        dataclasses.replace(MIXER, **{size: 0})
