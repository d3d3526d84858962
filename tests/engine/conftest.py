"""A small random decoder, the same in every test of the engine."""
from __future__ import annotations

import pytest
import torch

from pellucid.model.decoder import Decoder
from pellucid.ops.choose import choose
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope
from tests.families.conftest import one_thread  # noqa: F401, a fixture: tiny models

N_VOCAB, N_CTX = 61, 40


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    mixer = Attention(n_heads=6, n_kv_heads=3, d_head=4, scale=0.5, rope=Rope(theta=10_000.0, d_rotary=4))
    spec = DecoderSpec(family="llama", n_vocab=N_VOCAB, n_ctx=N_CTX, d_model=24, layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=32)),) * 2,
                       norm=Norm(eps=1e-5))
    decoder = Decoder(spec, choose("reference"))
    torch.manual_seed(7)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return decoder.requires_grad_(False)
