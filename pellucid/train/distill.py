"""Learning what a teacher of the same vocabulary expects at every learned token, not only which token came.

Shape letters as in model/decoder.py, and N the tokens of a batch that have a target. P and Q: what teacher and student expect, softmax of logits / τ.

    forward   KL(P || Q)                            the student covers all that the teacher would say
    reverse   KL(Q || P)                            the student keeps to what the teacher would say
    js        β KL(P || M) + (1 - β) KL(Q || M),    M = β P + (1 - β) Q

A token loses (1 - hard) τ² D + hard (-log Q₁(target)), Q₁ the student's at τ = 1. https://arxiv.org/abs/1503.02531 (section 2: why τ²) and
https://arxiv.org/abs/2306.13649 (equation 1).
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pellucid.api import Model
from pellucid.catalog.footprint import CHUNK_BYTES
from pellucid.data.batch import IGNORED, Batch
from pellucid.data.example import Example, Item
from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder, Unembed
from pellucid.model.low_rank import Choice
from pellucid.model.parts import Rows
from pellucid.tokenizer import Tokenizer
from pellucid.train.method import Method
from pellucid.train.recipe import part


@part
class Distill:
    """teacher: a path, a repository or a GGUF file, loaded as it is stored. temperature: τ; beta: of js; hard: the share of the rows' own tokens."""

    teacher: str
    divergence: Literal["forward", "reverse", "js"] = "forward"
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.5, gt=0, lt=1)
    hard: float = Field(default=0.0, ge=0, le=1)


class Imitation(Method):
    """The mean over a step's learned tokens. Neither model's logits are ever there for more than a part of them."""

    name = "distill"
    takes = Example

    def __init__(self, settings: Distill, teacher: Decoder) -> None:
        self.settings, self.teacher = settings, teacher

    def weight(self, item: Item) -> float:
        assert isinstance(item, Example)
        return item.n_learned

    def loss(self, decoder: Decoder, batch: Batch, rows: Rows) -> tuple[Tensor, Mapping[str, Tensor]]:
        at_N = (batch.target_T != IGNORED).nonzero()[:, 0]
        with torch.no_grad():
            theirs_ND = self.teacher(batch.tokens_T, rows=Rows.of(*batch.lengths)).index_select(0, at_N)
        hidden_ND = decoder(batch.tokens_T, rows=rows).index_select(0, at_N)
        choice = Choice.of(rows.adapters, rows.lengths, hidden_ND.device)
        trained = [p for p in decoder.unembed.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        loss, apart, alike = _Apart.apply(self, decoder.unembed, None if choice is None else choice.take(at_N),  # type: ignore[no-untyped-call]
                                          batch.target_T[at_N], theirs_ND, hidden_ND, *trained)
        return loss, {"divergence": apart, "agreement": alike}

    def token_losses(self, logits_nV: Tensor, theirs_nV: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        """What each token loses, and D alone, (n,)."""
        how = self.settings
        apart_n = divergence(logits_nV, theirs_nV, how)
        loss_n = (1 - how.hard) * how.temperature**2 * apart_n
        return (loss_n + how.hard * F.cross_entropy(logits_nV, target_n, reduction="none") if how.hard else loss_n), apart_n


def divergence(logits_nV: Tensor, theirs_nV: Tensor, how: Distill) -> Tensor:
    """D of each token, (n,). Tables of rows that no token has may differ in length: only what both have is compared."""
    V = min(logits_nV.shape[-1], theirs_nV.shape[-1])
    q_nV, p_nV = (F.log_softmax(each[:, :V] / how.temperature, -1) for each in (logits_nV, theirs_nV))
    if how.divergence == "forward":
        return _kl(p_nV, q_nV)
    if how.divergence == "reverse":
        return _kl(q_nV, p_nV)
    beta = torch.tensor(how.beta, device=q_nV.device)
    m_nV = torch.logaddexp(p_nV + beta.log(), q_nV + torch.log1p(-beta))
    return how.beta * _kl(p_nV, m_nV) + (1 - how.beta) * _kl(q_nV, m_nV)


def _kl(p_nV: Tensor, q_nV: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities."""
    return (p_nV.exp() * (p_nV - q_nV)).sum(-1)


class _Apart(torch.autograd.Function):
    """Summed loss, divergence, and how often both expect the same token; gradients are made with them, part by part, and wait for backward to scale them."""

    @staticmethod
    def forward(ctx: Any, method: Imitation, unembed: Unembed, choice: Choice | None, target_N: Tensor, theirs_ND: Tensor, hidden_ND: Tensor,
                *trained: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, apart, alike = (torch.zeros((), device=hidden_ND.device) for _ in range(3))
        by_hidden_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[5] else None
        by_trained = [torch.zeros_like(p) for p in trained]
        n = max(1, CHUNK_BYTES // (4 * unembed.d_out))  # of one model: those of two, and what is made of them, are about six times that
        for at_n in torch.arange(len(target_N), device=hidden_ND.device).split(n):
            theirs_nV = method.teacher.unembed(theirs_ND[at_n]).float()
            with torch.enable_grad():
                h_nD = hidden_ND[at_n].detach().requires_grad_(by_hidden_ND is not None)
                logits_nV = unembed(h_nD, None if choice is None else choice.take(at_n)).float()
                loss_n, apart_n = method.token_losses(logits_nV, theirs_nV, target_N[at_n])
                loss = loss_n.sum()
            asked = [*([h_nD] if by_hidden_ND is not None else []), *trained]
            if asked:
                found = list(torch.autograd.grad(loss, asked))
                if by_hidden_ND is not None:
                    by_hidden_ND[at_n] = found.pop(0)
                for kept, one in zip(by_trained, found, strict=True):
                    kept += one
            total += loss.detach()
            apart += apart_n.detach().sum()
            alike += (logits_nV.argmax(-1) == theirs_nV.argmax(-1)).sum()
        ctx.by_hidden_ND = by_hidden_ND
        ctx.save_for_backward(*by_trained)
        ctx.mark_non_differentiable(apart, alike)
        return total, apart, alike

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        scale = above[0]
        by_hidden_ND = None if ctx.by_hidden_ND is None else ctx.by_hidden_ND * scale.to(ctx.by_hidden_ND.dtype)
        return None, None, None, None, None, by_hidden_ND, *(each * scale.to(each.dtype) for each in ctx.saved_tensors)


def check_teacher(student: Tokenizer, teacher: Model) -> None:
    """Raises BadRequest where the two do not read every id as the same token."""
    theirs = teacher.tokenizer
    for i in range(max(student.n_vocab, theirs.n_vocab)):
        own, other = (one.encoder.token_of(i) if i < one.n_vocab else None for one in (student, theirs))
        if own != other:
            raise BadRequest(f"the teacher {teacher.checkpoint.name!r} has another vocabulary: id {i} is {other!r} there and {own!r} in the model that is "
                             f"tuned. Its logits say nothing here; let it write the answers, and learn those (method: sft)", field="settings.teacher")
