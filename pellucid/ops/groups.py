"""What the codes of matrices in groups mean, and of those whose columns stand in another order: the text that kernels are tested against."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.ops.bits import bits
from pellucid.weights.group_rows import GroupRows


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


def put_back(number_FD: Tensor, order_D: Tensor) -> Tensor:
    """Columns where the model has them: column j goes to order[j]."""
    return torch.empty_like(number_FD).index_copy_(1, order_D, number_FD)


def _numbers(rows: GroupRows) -> Tensor:
    """What the codes are by themselves, (rows, columns), float32."""
    codes_FD = rows.codes if rows.width == 8 else bits(rows.codes, rows.width).flatten(1)[:, : rows.n_columns]
    if rows.book is not None:
        return rows.book[codes_FD.int()]
    return codes_FD.view(rows.byte).float()
