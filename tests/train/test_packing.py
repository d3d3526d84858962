"""Rows that share a batch do not see each other: the loss and every gradient are those of the rows alone, beside each other or one at a time."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from pellucid.data.batch import Batch
from pellucid.data.example import Example
from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Ops
from pellucid.ops.training import Training
from pellucid.spec import Alibi, Attention, FeedForward, Layer, Rope
from pellucid.train.sft import NextToken
from tests.train.test_loop import rows
from tests.train.tiny import tiny_decoder


def taught(decoder: Decoder, batches: list[list[Example]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss summed over the batches, and the gradients of it."""
    total = 0.0
    for items in batches:
        batch = Batch.of(items)
        n = len(batch.lengths)
        loss, _ = NextToken().loss(decoder, batch, Rows(batch.lengths, tuple(range(n)), ()))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    gradients = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    return total, gradients


MIXERS: dict[str, dict[str, Any]] = {"positions": {"rope": Rope(theta=100.0, d_rotary=6)}, "window": {"rope": Rope(theta=100.0, d_rotary=6), "window": 4},
                                     "slopes": {"alibi": Alibi()}}


@pytest.mark.parametrize("ops", [Fused, Training])
@pytest.mark.parametrize("mixer", MIXERS)
def test_packed_rows_are_learned_from_as_if_alone(mixer: str, ops: type[Ops]) -> None:
    attention = Attention(n_heads=4, n_kv_heads=2, d_head=6, scale=6**-0.5, **MIXERS[mixer])
    decoder = tiny_decoder(ops(), trained=True, layers=(Layer(mixer=attention, mlp=FeedForward(d_ff=20)),) * 2)
    items = rows(9)  # of 3 to 11 tokens: more than the window
    loss, gradients = taught(decoder, [items])
    alone, theirs = taught(decoder, [[item] for item in items])
    assert loss == pytest.approx(alone, rel=1e-6)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def test_one_row_in_place_of_several_is_another_loss() -> None:
    """What the test above would not notice if rows were seen as one."""
    decoder = tiny_decoder(Fused(), trained=True)
    items = rows(9)
    joined = Example(tuple(i for item in items for i in item.ids), tuple(flag for item in items for flag in item.learned), "joined")
    assert abs(taught(decoder, [items])[0] - taught(decoder, [[joined]])[0]) > 1e-2
