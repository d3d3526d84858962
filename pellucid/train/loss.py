"""Losses over a vocabulary without the logits of all tokens: they are made for some tokens at a time, and only for those that have a target.

Shape letters as in model/decoder.py, and N the tokens of a batch that have a target, in order.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pellucid.catalog.footprint import CHUNK_BYTES
from pellucid.data.batch import IGNORED
from pellucid.model.decoder import Decoder, Unembed
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Rows


def cross_entropy(decoder: Decoder, hidden_TD: Tensor, target_T: Tensor, rows: Rows | None = None) -> Tensor:
    """The negative log-probability of all targets, summed, float32; targets that are IGNORED count nothing.

    Its gradient is made with it, a part at a time, so that backward multiplies no logits again: https://arxiv.org/abs/2410.10989, section 3.2.
    rows: as the decoder was given them; what they say of adapters is computed here too.
    """
    hidden_ND, target_N, choice = _kept(hidden_TD, target_T, rows)
    unembed = decoder.unembed
    if not torch.is_grad_enabled():
        return sum((_summed(unembed, *part) for part in _parts(unembed, hidden_ND, target_N, choice)), hidden_ND.new_zeros((), dtype=torch.float32))
    trained = [p for p in unembed.parameters() if p.requires_grad]
    loss: Tensor = _WithGradient.apply(unembed, choice, target_N, hidden_ND, *trained)  # type: ignore[no-untyped-call]
    return loss


def token_log_probs(decoder: Decoder, hidden_TD: Tensor, target_T: Tensor, rows: Rows | None = None) -> Tensor:
    """The log-probability of every target, (N,), float32. For losses that weigh them; backward makes the logits once more."""
    hidden_ND, target_N, choice = _kept(hidden_TD, target_T, rows)
    parts = _parts(decoder.unembed, hidden_ND, target_N, choice)
    if not torch.is_grad_enabled():
        return torch.cat([_each(decoder.unembed, *part) for part in parts])
    return torch.cat([checkpoint(_each, decoder.unembed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def by_row(values_N: Tensor, target_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sums over each row, (B,), of what its targets have."""
    row_T = torch.arange(len(lengths), device=target_T.device).repeat_interleave(torch.tensor(lengths, device=target_T.device))
    return values_N.new_zeros(len(lengths)).index_add(0, row_T[target_T != IGNORED], values_N)


class _WithGradient(torch.autograd.Function):
    """The summed loss; its gradients by the hidden states and by what is trained of the unembedding wait for backward, which only scales them."""

    @staticmethod
    def forward(ctx: Any, unembed: Unembed, choice: Choice | None, target_N: Tensor, hidden_ND: Tensor, *trained: Tensor) -> Tensor:
        total = torch.zeros((), device=hidden_ND.device)
        by_hidden_ND = torch.empty_like(hidden_ND) if hidden_ND.requires_grad else None
        by_trained = [torch.zeros_like(p) for p in trained]
        start = 0
        for h_nD, target_n, choice_n in _parts(unembed, hidden_ND, target_N, choice):
            stop = start + len(h_nD)
            with torch.enable_grad():
                h_nD = h_nD.detach().requires_grad_(by_hidden_ND is not None)
                logits_nV = unembed(h_nD, choice_n)
            # The kernels write the gradient over the logits: the sums and products that end an unembedding keep what they make for nobody.
            loss_n, by_logits_nV = unembed.ops.surprise(logits_nV.detach(), target_n)
            asked = [*([h_nD] if by_hidden_ND is not None else []), *trained]
            if asked:
                found = list(torch.autograd.grad(logits_nV, asked, by_logits_nV))
                if by_hidden_ND is not None:
                    by_hidden_ND[start:stop] = found.pop(0)
                for kept, one in zip(by_trained, found, strict=True):
                    kept += one
            total += loss_n.sum()
            start = stop
        ctx.by_hidden_ND = by_hidden_ND
        ctx.save_for_backward(*by_trained)
        return total

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        scale = above[0]
        by_hidden_ND = None if ctx.by_hidden_ND is None else ctx.by_hidden_ND * scale.to(ctx.by_hidden_ND.dtype)
        return None, None, None, by_hidden_ND, *(each * scale.to(each.dtype) for each in ctx.saved_tensors)


def _kept(hidden_TD: Tensor, target_T: Tensor, rows: Rows | None) -> tuple[Tensor, Tensor, Choice | None]:
    """The hidden states, targets and adapters of the tokens that have a target."""
    at_N = (target_T != IGNORED).nonzero()[:, 0]
    choice = None if rows is None or not rows.adapters else Choice.of(rows.adapters, rows.lengths, hidden_TD.device)
    return hidden_TD.index_select(0, at_N), target_T[at_N], None if choice is None else choice.take(at_N)


def _parts(unembed: Unembed, hidden_ND: Tensor, target_N: Tensor, choice: Choice | None) -> list[tuple[Tensor, Tensor, Choice | None]]:
    """So many tokens at a time as CHUNK_BYTES hold logits of; all parts but the last are equally long."""
    n = max(1, CHUNK_BYTES // (4 * unembed.d_out))
    taken = [None if choice is None else choice.take(at) for at in torch.arange(len(target_N), device=target_N.device).split(n)]
    return list(zip(hidden_ND.split(n), target_N.split(n), taken, strict=True)) if len(target_N) else []


def _summed(unembed: Unembed, h_nD: Tensor, target_n: Tensor, choice: Choice | None) -> Tensor:
    return F.cross_entropy(unembed(h_nD, choice).float(), target_n, reduction="sum")


def _each(unembed: Unembed, h_nD: Tensor, target_n: Tensor, choice: Choice | None) -> Tensor:
    return -F.cross_entropy(unembed(h_nD, choice).float(), target_n, reduction="none")
