"""What the codes of matrices in groups mean, of those whose columns stand in another order or whose zeros lie elsewhere: the text that kernels are tested
against."""
from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.ops.bits import bits
from pellucid.weights.group_rows import Affine, GroupRows


def unpack_groups(rows: GroupRows) -> Tensor:
    """The numbers, float32 (rows, columns)."""
    number_FD = _numbers(rows)
    if ragged := rows.scales.shape[1] * rows.group - rows.n_columns:
        number_FD = F.pad(number_FD, (0, ragged))
    number_FGC = number_FD.unflatten(1, (-1, rows.group))
    if isinstance(rows.zeros, Tensor):
        number_FGC = number_FGC - rows.zeros[..., None]
    elif rows.zeros:
        number_FGC = number_FGC - rows.zeros
    return (number_FGC * rows.scales.float()[..., None]).flatten(1)[:, : rows.n_columns]


def adjusted(number_FD: Tensor, weight_FD: Affine) -> Tensor:
    """The numbers of a weight, out of those of its rows."""
    if weight_FD.gain is not None:
        number_FD = number_FD * weight_FD.gain[:, None]
    if weight_FD.shift is not None:
        number_FD = number_FD + weight_FD.shift.repeat_interleave(weight_FD.group, 1)[:, : number_FD.shape[1]]
    return number_FD


def adjusted_sums(sum_TF: Tensor, x_TD: Tensor, weight_FD: Affine) -> Tensor:
    """The product with a weight, out of that with its rows: a shift is the same for a group of columns, so it multiplies the sum of their inputs."""
    if weight_FD.gain is not None:
        sum_TF = sum_TF * weight_FD.gain.to(sum_TF.dtype)
    if weight_FD.shift is not None:
        ragged = -x_TD.shape[1] % weight_FD.group
        group_TG = F.pad(x_TD, (0, ragged)).unflatten(1, (-1, weight_FD.group)).sum(-1)
        sum_TF = sum_TF + group_TG @ weight_FD.shift.to(sum_TF.dtype).T
    return sum_TF


def put_back(number_FD: Tensor, order_D: Tensor) -> Tensor:
    """Columns where the model has them: column j goes to order[j]."""
    return torch.empty_like(number_FD).index_copy_(1, order_D, number_FD)


def _numbers(rows: GroupRows) -> Tensor:
    """What the codes are by themselves, (rows, columns), float32."""
    if rows.width == 8 and rows.book is None and rows.byte in (torch.uint8, torch.int8):
        return rows.codes.view(rows.byte).float()
    # One look into a table of what each byte holds takes a quarter of the time that torch takes to convert FP8 or to index by every code.
    numbers = table(rows).index_select(0, rows.codes.flatten().int())
    return numbers.view(rows.shape[0], -1)[:, : rows.n_columns]


def table(rows: GroupRows) -> Tensor:
    """The numbers in each byte, the lowest bits first: (256, numbers of a byte), float32. Nobody writes to it."""
    return _table(rows.width, rows.byte, None if rows.book is None else tuple(rows.book.tolist()), rows.device)


@lru_cache(64)  # a model has a few, and asks with every product
def _table(width: int, byte: torch.dtype, book: tuple[float, ...] | None, device: torch.device) -> Tensor:
    every = torch.arange(256, dtype=torch.uint8, device=device)[:, None]
    codes = bits(every, width).flatten(1) if width < 8 else every
    if book is None:
        return codes.view(byte).float()
    return torch.tensor(book, dtype=torch.float32, device=device)[codes.int()]
