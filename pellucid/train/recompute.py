"""Activation checkpointing: a block keeps what it reads, and computes the rest once more in backward. https://arxiv.org/abs/1604.06174"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pellucid.model.decoder import Decoder
from pellucid.model.parts import Rows

_PROBES = 32, 64  # tokens of a row; two lengths tell what grows with the tokens from what grows with their pairs
MOST = 0.8  # of the free memory: what the rest of a step takes for a moment has to fit too


@contextmanager
def recomputing(decoder: Decoder, wanted: bool = True) -> Iterator[None]:
    """Within it the blocks of a training pass keep what they read and nothing else. The same bits come out, gradients too, whatever is drawn in a block."""
    blocks = list(decoder.blocks) if wanted else []
    for block in blocks:
        block.forward = partial(_again, block, block.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _again(block: nn.Module, forward: Any, *args: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False, determinism_check="none")


def activation_bytes(decoder: Decoder, lengths: Sequence[int], adapter: str | None) -> int:
    """What a forward pass of rows of these lengths keeps for backward without recomputing, weights aside: measured on short rows, and drawn out."""
    short, longer = (_kept(decoder, n, adapter) for n in _PROBES)
    n, m = _PROBES
    by_pair = max(0.0, (longer - short * m / n) / (m * m - m * n))
    by_token = (short - by_pair * n * n) / n
    return int(sum(by_token * length + by_pair * length * length for length in lengths))


def _kept(decoder: Decoder, n: int, adapter: str | None) -> int:
    """Bytes that one row of n tokens leaves for backward. Tensors of one memory count once, and weights never."""
    weights = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}  # held on to, so that no memory is given out twice

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    tokens_T = torch.arange(n, device=decoder.embed.weight.device) % decoder.spec.n_vocab
    trained = decoder.training
    drawn = torch.get_rng_state()
    try:
        with torch.enable_grad(), saved_tensors_hooks(pack, lambda tensor: tensor):
            decoder.train()(tokens_T, rows=Rows((n,), (0,), () if adapter is None else (adapter,)))
    finally:
        decoder.train(trained)
        torch.set_rng_state(drawn)
    return sum(size for size, _ in kept.values())
