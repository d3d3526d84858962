"""The smallest parts of a decoder: matrices, tables, norms, and which tokens belong together. Shape letters as in decoder.py."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from pellucid.model.low_rank import Adapters, Choice
from pellucid.ops.interface import Ops, Weight
from pellucid.spec import Norm
from pellucid.weights.packed_rows import PackedWeight


@dataclass(frozen=True, slots=True)
class Rows:
    """Which tokens of a flat batch belong together: `lengths[b]` tokens for the cache's row `slots[b]`, computed with the adapter `adapters[b]`.

    adapters: names of those that the decoder has; empty or None = the model as it is.
    """

    lengths: tuple[int, ...]
    slots: tuple[int, ...]
    adapters: tuple[str | None, ...] = ()

    @classmethod
    def of(cls, *lengths: int, slots: Sequence[int] | None = None, adapter: str | None = None) -> Rows:
        return cls(lengths, tuple(range(len(lengths)) if slots is None else slots), () if adapter is None else (adapter,) * len(lengths))


def hold(module: nn.Module, name: str, weight: Weight) -> None:
    """Puts a weight where `name` says, frozen: a dense one as a parameter, a packed one as an attribute, which `parameters()` does not list: see
    `Decoder.weights`."""
    delattr(module, name)  # torch lets nothing but a parameter follow a parameter
    setattr(module, name, weight if isinstance(weight, PackedWeight | nn.Parameter) else nn.Parameter(weight, requires_grad=False))


class Weighted(nn.Module):
    """What has a weight, dense or packed. A packed one goes where `.to` sends the module, as its parameters do, and is read in the dtype it names."""

    weight: Weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if isinstance(self.weight, PackedWeight):
            like = fn(torch.empty(0, dtype=self.weight.dtype, device=self.weight.device))
            if (like.device, like.dtype) != (self.weight.device, self.weight.dtype):
                self.weight = self.weight.to(like.device, like.dtype)
        return self


class Project(Weighted):
    """Every matrix of the model. The one place where adapters, sharding and probes attach. choice: which token takes which adapter; None = none does."""

    def __init__(self, ops: Ops, d_in: int, d_out: int, bias: bool) -> None:
        super().__init__()
        self.ops, self.d_in, self.d_out = ops, d_in, d_out
        self.adapters: Adapters | None = None
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x_TD: Tensor, choice: Choice | None = None) -> Tensor:
        return self.adapted(x_TD, self.ops.matmul(x_TD, self.weight, self.bias), choice)

    def adapted(self, x_TD: Tensor, y_TF: Tensor, choice: Choice | None) -> Tensor:
        """What the matrix made of x, and the chosen adapters besides."""
        return y_TF if choice is None or self.adapters is None else self.adapters.add(x_TD, y_TF, choice, self.matrix, self.bias)

    def turned_by(self, choice: Choice | None) -> bool:
        """Whether a chosen adapter does more than add to what the matrix makes."""
        return choice is not None and self.adapters is not None and any(
            part.m is not None for name, _ in choice.parts if (part := self.adapters.get(name)) is not None)

    @property
    def matrix(self) -> Weight:
        """The weight as (F, D)."""
        return self.weight


class Embed(Weighted):
    """A table read by row: tokens or learned positions."""

    def __init__(self, ops: Ops, n_rows: int, width: int) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(n_rows, width))

    def forward(self, rows_T: Tensor) -> Tensor:
        return self.ops.embed(self.weight, rows_T)


class Normalize(nn.Module):
    """A norm as the spec describes it; `shape` is that of its weight."""

    def __init__(self, ops: Ops, norm: Norm, *shape: int) -> None:
        super().__init__()
        self.ops, self.norm = ops, norm
        self.weight = nn.Parameter(torch.empty(*shape)) if norm.weight else None
        self.bias = nn.Parameter(torch.empty(*shape)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.normalize(x, self.weight, self.bias, kind=self.norm.kind, eps=self.norm.eps, offset=self.norm.offset)

    def wide(self, x: Tensor) -> Tensor:
        """The same in float32, not rounded in the end."""
        weight, bias = (None if p is None else p.float() for p in (self.weight, self.bias))
        return self.ops.normalize(x.float(), weight, bias, kind=self.norm.kind, eps=self.norm.eps, offset=self.norm.offset)
