"""Feed-forwards: what works on each position alone. Shape letters as in decoder.py."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.model.low_rank import Choice
from pellucid.model.parts import Project
from pellucid.model.tables import Tables
from pellucid.ops.interface import Ops
from pellucid.spec import FeedForward


class Xielu(nn.Module):
    """An activation with four learned numbers."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.alpha_p, self.alpha_n = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.beta, self.eps = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))

    def forward(self, x_TF: Tensor) -> Tensor:
        return self.ops.xielu(x_TF, self.alpha_p, self.alpha_n, self.beta, self.eps)


class Mlp(nn.Module):
    """The feed-forward of one layer, or one expert of it."""

    def __init__(self, ops: Ops, d_model: int, mlp: FeedForward) -> None:
        super().__init__()
        self.ops, self.mlp = ops, mlp
        self.gate = Project(ops, d_model, mlp.d_ff, mlp.bias) if mlp.gated else None
        self.up = Project(ops, d_model, mlp.d_ff, mlp.bias)
        self.down = Project(ops, mlp.d_ff, d_model, mlp.bias)
        self.xielu = Xielu(ops) if mlp.xielu else None

    def forward(self, x_TD: Tensor, choice: Choice | None = None) -> Tensor:
        mlp, up_TF = self.mlp, self.up(x_TD, choice)
        if self.xielu is not None:
            return self.down(self.xielu(up_TF), choice)
        if self.gate is None:
            return self.down(self.ops.activate(up_TF, mlp.act), choice)
        gated_TF = self.ops.gated(self.gate(x_TD, choice), up_TF, mlp.act, slope=mlp.slope, limit=mlp.limit, up_offset=mlp.up_offset)
        return self.down(gated_TF, choice)


class OneMatrix(nn.Module):
    """A square matrix in place of a sublayer. What attention would need beside the stream it does not read."""

    def __init__(self, ops: Ops, d_model: int) -> None:
        super().__init__()
        self.matrix = Project(ops, d_model, d_model, bias=False)

    def forward(self, x_TD: Tensor, told: Tables | Choice | None = None, *_: object) -> Tensor:
        return self.matrix(x_TD, told.choice if isinstance(told, Tables) else told)
