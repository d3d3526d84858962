"""Decoders so small that a training step takes milliseconds; no two sizes are equal."""
from __future__ import annotations

from typing import Any

import torch

from pellucid.model.decoder import Decoder
from pellucid.ops.interface import Ops
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope

N_VOCAB = 23


def tiny_spec(**facts: Any) -> DecoderSpec:
    mixer = Attention(n_heads=4, n_kv_heads=2, d_head=6, scale=6**-0.5, rope=Rope(theta=100.0, d_rotary=6))
    layers = (Layer(mixer=mixer, mlp=FeedForward(d_ff=20)),) * 2
    return DecoderSpec(**{"family": "llama", "n_vocab": N_VOCAB, "n_ctx": 64, "d_model": 16, "layers": layers, "norm": Norm(eps=1e-5)} | facts)


def tiny_decoder(ops: Ops, *, trained: bool = False, seed: int = 0, **facts: Any) -> Decoder:
    """Weights are drawn. trained: all of them ask for a gradient."""
    decoder = Decoder(tiny_spec(**facts), ops)
    generator = torch.Generator().manual_seed(seed)
    for name, p in decoder.named_parameters():
        with torch.no_grad():
            p.normal_(0, 0.3, generator=generator)
            if name.endswith("norm.weight"):
                p += 1
        p.requires_grad_(trained)
    return decoder
