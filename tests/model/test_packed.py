"""A decoder over packed weights is the decoder over the same numbers."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Embed, Project, hold
from pellucid.weights.packed_rows import PackedRows
from tests.families.build import TOLERANCE, build, logits, ours
from tests.families.cases import CASES

# Biases; a tied table; learned positions; routers; matrices that decoding absorbs; an unembedding of unit rows; inputs of each layer's own
NAMES = ["llama-biases", "gemma2-caps", "gpt2-released", "mixtral-window", "deepseek_v3-released", "baichuan-baichuan2_7b", "gemma4_text-e2b"]


def packed(decoder: Decoder) -> Decoder:
    """Every matrix packed, in the one format whose blocks fit any width: F32."""
    tied = decoder.unembed.weight is decoder.embed.weight
    for module in decoder.modules():
        if isinstance(module, Project | Embed):
            weight = module.weight
            assert isinstance(weight, Tensor)
            hold(module, "weight", PackedRows(weight.detach().contiguous().view(torch.uint8), "F32", weight.dtype))
    if tied:
        decoder.unembed.weight = decoder.embed.weight
    return decoder


@pytest.mark.parametrize("ops", ["reference", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_over_packed_weights(name: str, ops: str) -> None:
    built = build(next(case for case in CASES if str(case) == name))
    decoder = packed(ours(built.spec, built.tensors, ops=ops))
    assert not [name for name, p in decoder.named_parameters() if p.ndim == 2 and name.endswith(("embed.weight", "q.weight", "down.weight"))]
    expected = logits(ours(built.spec, built.tensors, ops=ops), built.tokens_T)
    assert (logits(decoder, built.tokens_T) - expected).abs().max() < TOLERANCE * expected.abs().max()
    cache = Cache(built.spec)
    steps = torch.cat([logits(decoder, part_T, cache=cache) for part_T in (built.tokens_T[:-3], *built.tokens_T[-3:].split(1))])
    assert (steps - expected).abs().max() < TOLERANCE * expected.abs().max()


@pytest.mark.parametrize("name", ["llama-biases", "deepseek_v3-released", "mixtral-window"])
def test_packed_weights_are_counted_and_follow_the_decoder(name: str) -> None:
    built = build(next(case for case in CASES if str(case) == name))
    dense, decoder = ours(built.spec, built.tensors), packed(ours(built.spec, built.tensors))
    numbers = sum(tensor.numel() for tensor in built.tensors.values())
    assert (decoder.n_parameters, decoder.n_bytes) == (dense.n_parameters, dense.n_bytes) == (numbers, 4 * numbers)
    assert decoder.weights().keys() == dense.weights().keys()
    decoder.to(torch.bfloat16)
    held = [weight for weight in decoder.weights().values() if isinstance(weight, PackedRows)]
    assert {weight.dtype for weight in held} == {torch.bfloat16}
    assert {weight.format for weight in held} == {"F32"}  # the numbers themselves are what they were
    assert not built.spec.tied or decoder.unembed.weight is decoder.embed.weight
    decoder.to("meta")
    assert {weight.device.type for weight in decoder.weights().values()} == {"meta"}
    assert not built.spec.tied or decoder.unembed.weight is decoder.embed.weight
