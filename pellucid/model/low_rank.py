"""What adapters add to the model's matrices, y = W x + scale * B (A x), and which token of a pass takes which adapter.

Shape letters as in decoder.py, and r rank · N some of the T tokens.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pellucid.ops.interface import Ops


class Choice:
    """The adapters of a pass's tokens. parts: (name, its tokens' indices (N,), None = all of them) of every adapter that some token takes.

    which_T: for each token an index into `names`, -1 = none; None: all tokens take the one adapter that is named.
    """

    def __init__(self, names: tuple[str, ...], which_T: Tensor | None) -> None:
        self.names, self.which_T = names, which_T
        self.parts: list[tuple[str, Tensor | None]] = [(names[0], None)] if which_T is None else [
            (name, at_N) for i, name in enumerate(names) if len(at_N := (which_T == i).nonzero()[:, 0])]

    @classmethod
    def of(cls, adapters: Sequence[str | None], lengths: Sequence[int], device: torch.device | str = "cpu") -> Choice | None:
        """Of rows of these lengths, one adapter a row; None where no row takes any."""
        names = tuple(dict.fromkeys(name for name in adapters if name is not None))
        if not names:
            return None
        if len(set(adapters)) == 1:
            return cls(names, None)
        which = torch.tensor([-1 if name is None else names.index(name) for name in adapters], device=device)
        return cls(names, which.repeat_interleave(torch.tensor(lengths, device=device)))

    def on(self, device: torch.device) -> Choice:
        """The same on that device."""
        return self if self.which_T is None else Choice(self.names, self.which_T.to(device))

    def take(self, token_N: Tensor) -> Choice:
        """That of these tokens."""
        return self if self.which_T is None else Choice(self.names, self.which_T[token_N])


class LowRank(nn.Module):
    """One adapter's part in one matrix. a (r, D) and b (F, r) are parameters, frozen until something trains them; they are multiplied as they are held."""

    def __init__(self, ops: Ops, a_rD: Tensor, b_Fr: Tensor, scale: float) -> None:
        super().__init__()
        self.ops, self.scale = ops, scale
        self.a, self.b = nn.Parameter(a_rD, requires_grad=False), nn.Parameter(b_Fr, requires_grad=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """What is added, (T, F), in the dtype of a and b."""
        return self.ops.matmul(self.ops.matmul(x_TD.to(self.a.dtype), self.a), self.b) * self.scale

    def add(self, x_TD: Tensor, y_TF: Tensor) -> Tensor:
        """y and what is added, perhaps in y's place."""
        return self.ops.low_rank(y_TF, x_TD, self.a, self.b, self.scale)


class Adapters(nn.Module):
    """The parts that loaded adapters have in one matrix, by the adapters' names."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleDict()

    def put(self, name: str, part: LowRank) -> None:
        self.held[_key(name)] = part

    def drop(self, name: str) -> None:
        if _key(name) in self.held:
            del self.held[_key(name)]

    def get(self, name: str) -> LowRank | None:
        return self.held._modules.get(_key(name))  # type: ignore[return-value]

    def add(self, x_TD: Tensor, y_TF: Tensor, choice: Choice) -> Tensor:
        """y plus what the chosen adapters make of x, token by token."""
        for name, token_N in choice.parts:
            part = self.get(name)
            if part is not None and token_N is None:
                y_TF = part.add(x_TD, y_TF)
            elif part is not None:
                y_TF = y_TF.index_add(0, token_N, part(x_TD.index_select(0, token_N)).to(y_TF.dtype))  # type: ignore[arg-type]
        return y_TF


def _key(name: str) -> str:
    return f"@{name}"  # a ModuleDict takes no name that is an attribute of its own, such as "type"
