"""Mixtures of experts: a router, and feed-forwards of which a token visits a few. Shape letters as in decoder.py."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.model.low_rank import Choice
from pellucid.model.mlp import Mlp
from pellucid.model.parts import Normalize, Project
from pellucid.ops.interface import Ops
from pellucid.spec import DecoderSpec, Experts


class Router(Project):
    """A token's logit for each expert, (T, X), in float32 whatever the model runs in: a rounding here would choose another expert."""

    def __init__(self, ops: Ops, d_model: int, experts: Experts) -> None:
        super().__init__(ops, d_model, experts.n_experts, experts.router_bias)
        self.scale = experts.router_scale
        self.norm = None if experts.router_norm is None else Normalize(ops, experts.router_norm, d_model)
        self.correction = nn.Parameter(torch.empty(experts.n_experts)) if experts.correction else None
        self.gain = nn.Parameter(torch.empty(experts.n_experts)) if experts.share_gain else None

    def forward(self, x_TD: Tensor, choice: Choice | None = None) -> Tensor:
        x_TD = x_TD.float() if self.norm is None else self.norm.wide(x_TD)
        logits_TX = self.ops.matmul(x_TD, self.ops.unpack(self.weight, torch.float32), None if self.bias is None else self.bias.float())
        logits_TX = self.adapted(x_TD, logits_TX, choice)
        return logits_TX if self.scale == 1.0 else logits_TX * self.scale


class MixtureOfExperts(nn.Module):
    """A router and its experts; each token visits only the experts chosen for it, and the shared one.

    `deterministic`: an expert reads all tokens, each in its own place, and of what it writes only its own are used: who else chose it does not
    change a bit.
    """

    def __init__(self, ops: Ops, d_model: int, experts: Experts, *, deterministic: bool = False) -> None:
        super().__init__()
        self.ops, self.spec, self.deterministic = ops, experts, deterministic
        self.router = Router(ops, d_model, experts)
        self.experts = nn.ModuleList(Mlp(ops, d_model, experts.each) for _ in range(experts.n_experts))
        self.shared = None if experts.shared is None else Mlp(ops, d_model, experts.shared)
        self.shared_gate = Project(ops, d_model, 1, bias=False) if experts.shared_gate else None

    def forward(self, x_TD: Tensor, choice: Choice | None = None, read_TD: Tensor | None = None) -> Tensor:
        """read_TD: what the router reads, where that is not what the experts read."""
        share_TA, expert_TA = self.ops.route(self.router(x_TD if read_TD is None else read_TD, choice), self.router.correction, self.spec)
        if self.router.gain is not None:
            share_TA = share_TA * self.router.gain[expert_TA]
        out_TD = self.routed(x_TD, share_TA, expert_TA, choice).to(x_TD.dtype)
        if self.shared is None:
            return out_TD
        shared_TD = self.shared(x_TD, choice)
        return out_TD + (shared_TD if self.shared_gate is None else self.shared_gate(x_TD, choice).sigmoid() * shared_TD)

    def routed(self, x_TD: Tensor, share_TA: Tensor, expert_TA: Tensor, choice: Choice | None = None) -> Tensor:
        """What the chosen experts write, times their shares, added up: (T, D), float32 or wider.

        The N pairs of a token and a choice are sorted by expert once; then each expert that somebody chose reads its tokens in one piece, and the
        others cost nothing. A token's sum runs over its experts by number, whichever tokens stand beside it.
        """
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        share_TA = share_TA.to(wide)
        if x_TD.shape[0] == 1 and not self.spec.scale_input:  # nothing to sort, gather or scatter: 0.85 times the time, docs/LOG.md
            return share_TA @ torch.cat([self.experts[e](x_TD, choice) for e in expert_TA[0].tolist()]).to(wide)
        expert_N, pair_N = expert_TA.flatten().sort(stable=True)
        chosen, lengths = torch.stack(expert_N.unique_consecutive(return_counts=True)).tolist()  # the one wait for the device
        tokens, shares = (pair_N // self.spec.n_active).split(lengths), share_TA.flatten()[pair_N, None].split(lengths)
        out_TD = torch.zeros_like(x_TD, dtype=wide)
        for e, token_N, share_N1 in zip(chosen, tokens, shares, strict=True):
            if self.deterministic:
                written_ND = self.write(e, x_TD, share_TA.where(expert_TA == e, 0).sum(-1, keepdim=True), choice)[token_N]
            else:
                written_ND = self.write(e, x_TD.index_select(0, token_N), share_N1, None if choice is None else choice.take(token_N))
            out_TD.index_add_(0, token_N, written_ND)
        return out_TD

    def write(self, e: int, x_ND: Tensor, share_N1: Tensor, choice: Choice | None = None) -> Tensor:
        """What expert `e` writes for these tokens, times their shares of it."""
        expert = self.experts[e]
        return expert(x_ND * share_N1.to(x_ND.dtype), choice).to(share_N1.dtype) if self.spec.scale_input else expert(x_ND, choice) * share_N1


class Beside(nn.Module):
    """A mixture that reads the stream x beside the layer's feed-forward; what each of the two writes is normalized, and added.

        x ─ norm ─ mixture ─ out_norm ─ + ─ mlp_norm ─ what the feed-forward wrote        the router reads x as it is
    """

    def __init__(self, ops: Ops, spec: DecoderSpec, experts: Experts, *, deterministic: bool) -> None:
        super().__init__()
        self.norm, self.out_norm, self.mlp_norm = (Normalize(ops, spec.norm, spec.d_model) for _ in range(3))
        self.mixture = MixtureOfExperts(ops, spec.d_model, experts, deterministic=deterministic)

    def forward(self, x_TD: Tensor, mlp_TD: Tensor, choice: Choice | None = None) -> Tensor:
        return self.mlp_norm(mlp_TD) + self.out_norm(self.mixture(self.norm(x_TD), choice, x_TD))
