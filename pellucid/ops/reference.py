"""Every operation in plain torch, written to be read: the text that faster backends are tested against."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.ops.groups import adjusted_sums
from pellucid.ops.interface import Activations, Pages, Weight
from pellucid.ops.packed import is_rounded, matmul_packed, rounded
from pellucid.ops.unpack import unpack
from pellucid.spec import Activation, Experts
from pellucid.weights.group_rows import Affine, Reordered
from pellucid.weights.packed_rows import PackedWeight

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),  # https://github.com/hendrycks/GELUs
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # https://arxiv.org/abs/2109.08668
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,  # slope 0.01 below zero
    "hardswish": F.hardswish,  # https://arxiv.org/abs/1905.02244
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.5**0.5) / (0.282095 * 2**0.5))),  # https://arxiv.org/abs/2209.10655, its constants rounded so
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "linear": lambda x: x,
}


class Reference:
    """Implements `Ops` in torch, on any device and in any float dtype."""

    name = "reference"

    def __init__(self, activations: Activations = "exact") -> None:
        self.activations = activations

    def prepared_bytes(self, weight_FD: Weight) -> int:
        return 0

    def prepare(self, weight_FD: Weight, take: Callable[[int], Tensor] | None = None) -> Weight:
        return weight_FD

    def describe(self) -> str:
        return "reference: torch, every operation"

    def matmul(self, x_TD: Tensor, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        if isinstance(weight_FD, Reordered):  # the columns of x go where the weight's are, and any kernel can multiply
            return self.matmul(x_TD.index_select(1, weight_FD.order), weight_FD.rows, bias_F)
        if isinstance(weight_FD, Affine):
            wide_TD = x_TD.to(torch.promote_types(x_TD.dtype, torch.float32))
            out_TF = adjusted_sums(self.matmul(wide_TD, weight_FD.rows), wide_TD, weight_FD)
            return (out_TF if bias_F is None else out_TF + bias_F.to(out_TF.dtype)).to(x_TD.dtype)
        if isinstance(weight_FD, PackedWeight):
            return matmul_packed(rounded(x_TD) if self.activations == "int8" and is_rounded(x_TD, weight_FD) else x_TD, weight_FD, bias_F)
        return F.linear(x_TD, weight_FD, bias_F)

    def low_rank(self, y_TF: Tensor, x_TD: Tensor, a_rD: Tensor, b_Fr: Tensor, scale: float) -> Tensor:
        return y_TF + (self.matmul(self.matmul(x_TD.to(a_rD.dtype), a_rD), b_Fr) * scale).to(y_TF.dtype)

    def embed(self, weight_VD: Weight, tokens_T: Tensor) -> Tensor:
        if isinstance(weight_VD, PackedWeight):
            return self.unpack(weight_VD[tokens_T], weight_VD.dtype)
        return F.embedding(tokens_T, weight_VD)

    def unpack(self, weight_FD: Weight, dtype: torch.dtype) -> Tensor:
        return (unpack(weight_FD) if isinstance(weight_FD, PackedWeight) else weight_FD).to(dtype)

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, *,
                  kind: Literal["rms", "layer"], eps: float, offset: float) -> Tensor:
        y = x.float()
        if kind == "layer":
            y = y - y.mean(-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        if weight is not None:
            y = y * (offset + weight.float())
        if bias is not None:
            y = y + bias.float()
        return y.to(x.dtype)

    def rotate(self, x_THC: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, pairing: Literal["half", "adjacent"]) -> Tensor:
        R = cos_TR.shape[-1]
        x_THR, rest = x_THC[..., :R].float(), x_THC[..., R:]
        partner_THR = x_THR.roll(R // 2, -1) if pairing == "half" else x_THR.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        turned_THR = (x_THR * cos_TR[:, None] + partner_THR * sin_TR[:, None]).to(x_THC.dtype)
        return torch.cat([turned_THR, rest], -1) if rest.shape[-1] else turned_THR

    def attend(self, q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, q_lengths: Sequence[int], k_lengths: Sequence[int],
               scale: float, window: int | None, softcap: float | None, chunk: int | None = None, sinks_H: Tensor | None = None,
               slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        rows = zip(q_THC.split(list(q_lengths)), k_SKC.split(list(k_lengths)), v_SKC.split(list(k_lengths)), strict=True)
        how = {"scale": scale, "window": window, "softcap": softcap, "chunk": chunk, "sinks_H": sinks_H, "slopes_H": slopes_H, "causal": causal}
        return torch.cat([attend_row(q, k, v, **how) for q, k, v in rows])

    def attend_pages(self, q_THC: Tensor, k_PNKC: Tensor, v_PNKC: Tensor, pages: Pages, *, scale: float, window: int | None, softcap: float | None,
                     chunk: int | None = None, sinks_H: Tensor | None = None, slopes_H: Tensor | None = None, causal: bool = True) -> Tensor:
        return self.attend(q_THC, pages.gather(k_PNKC), pages.gather(v_PNKC), q_lengths=pages.q_lengths, k_lengths=pages.lengths, scale=scale,
                           window=window, softcap=softcap, chunk=chunk, sinks_H=sinks_H, slopes_H=slopes_H, causal=causal)

    def gated(self, gate_TF: Tensor, up_TF: Tensor, act: Activation, *, slope: float = 1.0, limit: float | None = None, up_offset: float = 0.0) -> Tensor:
        if limit is not None:
            gate_TF, up_TF = gate_TF.clamp(max=limit), up_TF.clamp(-limit, limit)
        active_TF = self.activate(gate_TF, act) if slope == 1.0 else gate_TF * torch.sigmoid(slope * gate_TF)
        return active_TF * (up_TF + up_offset if up_offset else up_TF)

    def activate(self, x_TF: Tensor, act: Activation) -> Tensor:
        return ACTIVATIONS[act](x_TF)

    def xielu(self, x_TF: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
        x, rise, fall, slope = x_TF.float(), F.softplus(alpha_p.float()), F.softplus(alpha_n.float()), beta.float()
        below = (slope + fall) * (torch.expm1(x.minimum(eps.float())) - x)
        return (torch.where(x > 0, rise * x * x, below) + slope * x).to(x_TF.dtype)

    def route(self, logits_TX: Tensor, correction_X: Tensor | None, experts: Experts) -> tuple[Tensor, Tensor]:
        score_TX = logits_TX.float().softmax(-1) if experts.scoring == "softmax" else logits_TX.float().sigmoid()
        choice_TX = score_TX if correction_X is None else score_TX + correction_X.float()
        if experts.n_active_groups < experts.n_groups:
            choice_TX = in_best_groups(choice_TX, experts)
        if experts.spread:
            choice_TX = best_of_each_group(choice_TX, experts)
        expert_TA = choice_TX.topk(experts.n_active).indices
        share_TA = score_TX.gather(-1, expert_TA)
        if experts.renormalize:
            share_TA = share_TA / share_TA.sum(-1, keepdim=True)
        return share_TA * experts.share_scale, expert_TA

    def surprise(self, logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        logp_NV, at_N1 = logits_NV.float().log_softmax(-1), target_N[:, None]
        by_NV = logp_NV.exp().scatter_add(-1, at_N1, torch.full_like(at_N1, -1, dtype=torch.float32))
        return -logp_NV.gather(-1, at_N1)[:, 0], by_NV.to(logits_NV.dtype)


def best_of_each_group(choice_TX: Tensor, experts: Experts) -> Tensor:
    """The scores, -inf but for the n_active / n_groups best of every group. https://arxiv.org/abs/2505.21411"""
    choice_TNX = choice_TX.unflatten(-1, (experts.n_groups, -1))
    best_TNA = choice_TNX.topk(experts.n_active // experts.n_groups).indices
    return torch.full_like(choice_TNX, -torch.inf).scatter(-1, best_TNA, choice_TNX.gather(-1, best_TNA)).flatten(-2)


def in_best_groups(choice_TX: Tensor, experts: Experts) -> Tensor:
    """The scores, -inf outside of the n_active_groups best groups. https://arxiv.org/abs/2405.04434, section 2.2.2"""
    choice_TNX = choice_TX.unflatten(-1, (experts.n_groups, -1))  # N groups
    group_TN = choice_TNX.topk(1 if experts.group_score == "best" else 2).values.sum(-1)
    active_TN = torch.zeros_like(group_TN, dtype=torch.bool).scatter(-1, group_TN.topk(experts.n_active_groups).indices, True)
    return choice_TNX.masked_fill(~active_TN[..., None], -torch.inf).flatten(-2)


def attend_row(q_THC: Tensor, k_SKC: Tensor, v_SKC: Tensor, *, scale: float, window: int | None, softcap: float | None, chunk: int | None,
               sinks_H: Tensor | None, slopes_H: Tensor | None, causal: bool, drop: float = 0.0) -> Tensor:
    """Attention of one row in float32; the last T keys are the queries' own. (T, H, C). drop: the share of probabilities that become zero, in training."""
    (T, H, C), (S, K, _) = q_THC.shape, k_SKC.shape
    q_TKGC = q_THC.float().view(T, K, H // K, C)
    scores_KGTS = torch.einsum("tkgc,skc->kgts", q_TKGC, k_SKC.float()) * scale
    if softcap is not None:
        scores_KGTS = softcap * torch.tanh(scores_KGTS / softcap)
    if slopes_H is not None:
        scores_KGTS = scores_KGTS + falling(slopes_H, T, S).view(K, H // K, T, S)
    scores_KGTS = scores_KGTS.masked_fill(~visible(T, S, window, chunk, q_THC.device, causal=causal), -torch.inf)
    if sinks_H is not None:
        scores_KGTS = torch.cat([scores_KGTS, sinks_H.float().view(K, H // K, 1, 1).expand(-1, -1, T, 1)], -1)
    shares_KGTS = F.dropout(scores_KGTS.softmax(-1)[..., :S], drop) if drop else scores_KGTS.softmax(-1)[..., :S]
    out_TKGC = torch.einsum("kgts,skc->tkgc", shares_KGTS, v_SKC.float())
    return out_TKGC.reshape(T, H, v_SKC.shape[-1]).to(q_THC.dtype)


def visible(T: int, S: int, window: int | None, chunk: int | None, device: torch.device, *, causal: bool = True) -> Tensor:
    """(T, S), true where query t may see key s."""
    query_T1 = torch.arange(S - T, S, device=device)[:, None]
    key_1S = torch.arange(S, device=device)[None, :]
    if not causal:
        return torch.ones(T, S, dtype=torch.bool, device=device) if window is None else (key_1S - query_T1).abs() < window
    seen = key_1S <= query_T1
    if window is not None:
        seen &= key_1S > query_T1 - window  # keys in (t - window, t]: the query itself counts, as transformers has it and Mistral's paper does not
    if chunk is not None:
        seen &= key_1S >= query_T1 // chunk * chunk
    return seen


def falling(slopes_H: Tensor, T: int, S: int) -> Tensor:
    """(H, T, S), float32: how much each head lowers the score of query t with key s. Counted from the query, so that it stays exact in long rows."""
    query_T1 = torch.arange(S - T, S, device=slopes_H.device)[:, None]
    key_1S = torch.arange(S, device=slopes_H.device)[None, :]
    return slopes_H.float()[:, None, None] * (key_1S - query_T1)
