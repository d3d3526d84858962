"""Mixtures of experts: a router, and feed-forwards of which a token visits a few. Shape letters as in decoder.py."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.model.mlp import Mlp
from pellucid.model.parts import Project
from pellucid.ops.interface import Ops
from pellucid.spec import Experts


class Router(Project):
    """A token's logit for each expert, (T, X), in float32 whatever the model runs in: a rounding here would choose another expert."""

    def __init__(self, ops: Ops, d_model: int, experts: Experts) -> None:
        super().__init__(ops, d_model, experts.n_experts, experts.router_bias)
        self.correction = nn.Parameter(torch.empty(experts.n_experts)) if experts.correction else None
        self.gain = nn.Parameter(torch.empty(1, experts.n_experts)) if experts.share_gain else None

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.ops.matmul(x_TD.float(), self.weight.float(), None if self.bias is None else self.bias.float())


class MixtureOfExperts(nn.Module):
    """A router and its experts; each token visits only the experts chosen for it, and the shared one."""

    def __init__(self, ops: Ops, d_model: int, experts: Experts) -> None:
        super().__init__()
        self.ops, self.spec = ops, experts
        self.router = Router(ops, d_model, experts)
        self.experts = nn.ModuleList(Mlp(ops, d_model, experts.each) for _ in range(experts.n_experts))
        self.shared = None if experts.shared is None else Mlp(ops, d_model, experts.shared)
        self.shared_gate = Project(ops, d_model, 1, bias=False) if experts.shared_gate else None

    def forward(self, x_TD: Tensor) -> Tensor:
        share_TA, expert_TA = self.ops.route(self.router(x_TD), self.router.correction, self.spec)
        if self.router.gain is not None:
            share_TA = share_TA * self.router.gain[0, expert_TA]
        out_TD = torch.zeros_like(x_TD)
        for e in expert_TA.unique().tolist():
            token, choice = (expert_TA == e).nonzero(as_tuple=True)
            share = share_TA[token, choice, None].to(x_TD.dtype)
            x, expert = x_TD[token], self.experts[e]
            out_TD.index_add_(0, token, expert(x * share) if self.spec.scale_input else expert(x) * share)
        if self.shared is None:
            return out_TD
        shared_TD = self.shared(x_TD)
        return out_TD + (shared_TD if self.shared_gate is None else self.shared_gate(x_TD).sigmoid() * shared_TD)
