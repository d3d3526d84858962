"""What adapters add to the model's matrices, y = W x + scale * B (A x), and which token of a pass takes which adapter.

DoRA (arXiv 2402.09353) says besides how long each row of the sum is, m: y = m / |W + scale B A| * (W + scale B A) x. The length divided by is a
constant to the gradients (section 4.3 there).

Shape letters as in decoder.py, and r rank · N some of the T tokens.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pellucid.ops.interface import Ops, Weight
from pellucid.weights.packed_rows import PackedWeight

BLOCK = 1 << 20  # numbers of a matrix that are unpacked at a time


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
    """One adapter's part in one matrix. a (r, D) and b (F, r) are parameters, frozen until something trains them; they are multiplied as they are held.

    m_F: DoRA's magnitudes. gain_F: by what they lengthen the rows, kept where nothing is trained; see `settle`.
    """

    def __init__(self, ops: Ops, a_rD: Tensor, b_Fr: Tensor, scale: float, m_F: Tensor | None = None) -> None:
        super().__init__()
        self.ops, self.scale = ops, scale
        self.a, self.b = nn.Parameter(a_rD, requires_grad=False), nn.Parameter(b_Fr, requires_grad=False)
        self.m = None if m_F is None else nn.Parameter(m_F, requires_grad=False)
        self.gain_F: Tensor | None = None

    def forward(self, x_TD: Tensor, gain_F: Tensor | None = None) -> Tensor:
        """gain * scale * B A x, (T, F), in the dtype of a and b."""
        return self.ops.matmul(self.ops.matmul(x_TD.to(self.a.dtype), self.a), self._b(gain_F)) * self.scale

    def add(self, x_TD: Tensor, y_TF: Tensor, gain_F: Tensor | None = None) -> Tensor:
        """y and the same, perhaps in y's place."""
        return self.ops.low_rank(y_TF, x_TD, self.a, self._b(gain_F), self.scale)

    def onto(self, x_TD: Tensor, y_TF: Tensor, weight_FD: Weight, bias_F: Tensor | None) -> Tensor:
        """What the matrix with this part in it makes of x, from y, which it made without, perhaps in y's place."""
        if self.m is None:
            return self.add(x_TD, y_TF)
        gain_F = self.m.float() / self.lengths(weight_FD) if self.gain_F is None else self.gain_F
        plain_TF = y_TF if bias_F is None else y_TF - bias_F.to(y_TF.dtype)
        return self.add(x_TD, y_TF + plain_TF * (gain_F - 1).to(y_TF.dtype), gain_F)  # 16 bits round what is left of a gain near 1, not the gain

    @torch.no_grad()
    def lengths(self, weight_FD: Weight) -> Tensor:
        """Of the rows of W + scale B A, float32."""
        return torch.cat([torch.linalg.vector_norm(part + self.scale * (b.float() @ self.a.float()), dim=1) for part, b in self._parts(weight_FD)])

    def settle(self, weight_FD: Weight) -> None:
        """Keeps what follows from weights that stay as they are."""
        if self.m is not None:
            self.gain_F = self.m.detach().float() / self.lengths(weight_FD)

    def merged(self, weight_FD: Tensor) -> Tensor:
        """The matrix with this part in it, summed in float32 or wider and rounded once."""
        wide = torch.promote_types(weight_FD.dtype, torch.float32)
        out_FD = weight_FD.to(wide) + self.scale * (self.b.detach().to(wide) @ self.a.detach().to(wide))
        if self.m is not None:
            out_FD *= (self.m.detach().to(wide) / torch.linalg.vector_norm(out_FD, dim=1))[:, None]
        return out_FD.to(weight_FD.dtype)

    def _b(self, gain_F: Tensor | None) -> Tensor:
        return self.b if gain_F is None else self.b * gain_F[:, None].to(self.b.dtype)

    def _parts(self, weight_FD: Weight) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of the matrix, in float32, and their rows of b."""
        rows = max(1, BLOCK // weight_FD.shape[1])
        parts = weight_FD.parts(BLOCK) if isinstance(weight_FD, PackedWeight) else weight_FD.split(rows)
        start = 0
        for part in parts:
            yield self.ops.unpack(part, torch.float32), self.b[start : start + part.shape[0]]
            start += part.shape[0]


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

    def add(self, x_TD: Tensor, y_TF: Tensor, choice: Choice, weight_FD: Weight, bias_F: Tensor | None = None) -> Tensor:
        """y, which the matrix made of x, as it would be with the chosen adapters in the matrix, token by token."""
        for name, token_N in choice.parts:
            part = self.get(name)
            if part is not None and token_N is None:
                y_TF = part.onto(x_TD, y_TF, weight_FD, bias_F)
            elif part is not None and part.m is not None:
                own_NF = part.onto(x_TD.index_select(0, token_N), y_TF.index_select(0, token_N), weight_FD, bias_F)  # type: ignore[arg-type]
                y_TF = y_TF.index_copy(0, token_N, own_NF)  # type: ignore[arg-type]
            elif part is not None:
                y_TF = y_TF.index_add(0, token_N, part(x_TD.index_select(0, token_N)).to(y_TF.dtype))  # type: ignore[arg-type]
        return y_TF


def _key(name: str) -> str:
    return f"@{name}"  # a ModuleDict takes no name that is an attribute of its own, such as "type"
