"""What is computed again is the same bits and takes less memory; what it would take otherwise is known before the first step."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from pellucid.data.batch import Batch
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.ops.reference import Reference
from pellucid.spec import Attention, Experts, FeedForward, Layer, Rope
from pellucid.train.loss import cross_entropy
from pellucid.train.memory import activation_bytes
from pellucid.train.noise import Dropouts, dropping
from pellucid.train.trainable import trained
from tests.train.test_loop import recipe, rows
from tests.train.tiny import tiny_decoder

MIXER = Attention(n_heads=4, n_kv_heads=2, d_head=6, scale=6**-0.5, rope=Rope(theta=100.0, d_rotary=6))
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": {"layers": (Layer(mixer=MIXER, mlp=Experts(n_experts=5, n_active=2, renormalize=True, each=FeedForward(d_ff=12))),) * 2},
    "shared keys": {"layers": (Layer(mixer=MIXER, mlp=FeedForward(d_ff=20)),
                               Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=6, scale=6**-0.5, rope=MIXER.rope, shares=0), mlp=FeedForward(d_ff=20)))},
}


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_the_same_bits(shape: str, kind: str) -> None:
    batch = Batch.of(rows(6))
    found = []
    for wanted in (False, True):
        decoder = tiny_decoder(Fused(), **SHAPES[shape]).train()
        what = trained(decoder, recipe(tune={"kind": kind, "rank": 2}).tune, 0)
        how = Rows(batch.lengths, tuple(range(6)), () if what.adapter is None else (what.adapter,) * 6)
        decoder.recomputed = wanted
        loss = cross_entropy(decoder, decoder(batch.tokens_T, rows=how), batch.target_T, how)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in what.parameters.items()}))
    (loss, gradients), (again, same) = found
    assert torch.equal(loss, again)
    for name, gradient in gradients.items():
        assert (gradient is None) == (same[name] is None), name
        assert gradient is None or torch.equal(gradient, same[name]), name


def test_what_is_drawn_in_a_block_is_drawn_again() -> None:
    """Dropout by another mask in backward would be another gradient."""
    batch, found = Batch.of(rows(6)), []
    for seed, wanted in ((7, False), (7, True), (8, False)):
        decoder = tiny_decoder(Fused(), trained=True).train()
        decoder.recomputed = wanted
        torch.manual_seed(seed)
        with dropping(decoder, Dropouts(embedding=0.2, residual=0.3, attention=0.2)):
            cross_entropy(decoder, decoder(batch.tokens_T, rows=Rows.of(*batch.lengths)), batch.target_T).backward()
        found.append([p.grad for p in decoder.parameters() if p.grad is not None])
    straight, again, other = found
    assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(straight, other, strict=True))


@pytest.mark.parametrize("shape", ["plain", "experts"])
@pytest.mark.parametrize("ops", [Fused, Reference])
def test_what_a_pass_would_keep_is_known_from_a_short_one(ops: type[Reference], shape: str) -> None:
    """The reference keeps scores of all pairs, so what it keeps grows with the square of a row."""
    decoder = tiny_decoder(ops(), trained=True, **SHAPES[shape], n_ctx=512)
    lengths = (200, 90)
    kept: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.train()(torch.zeros(sum(lengths), dtype=torch.int64), rows=Rows.of(*lengths))
    true = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    decoder.eval()
    assert activation_bytes(decoder, lengths, None) == pytest.approx(true, rel=0.15)
    assert not decoder.training
