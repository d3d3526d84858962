"""Products with packed weights as files hold them, for the formats and the settings that panels are not for: a few rows are unpacked in a core's own cache,
multiplied in float32 and forgotten (ops/cpu/stored.h). What is mapped stays mapped; nothing is put in another order."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pellucid.ops.codebooks import grid
from pellucid.ops.groups import table
from pellucid.ops.panels import n_threads, native
from pellucid.weights.group_rows import GroupRows
from pellucid.weights.packed_rows import PackedRows, PackedWeight

PLAIN = ("F32", "F16", "BF16")
# Rows up to which these products are the faster ones: of more torch's gain more than unpacking costs them. Of a 2048 x 2048 matrix on two cores torch takes
# 0.7 to 0.9 of the time for 128 rows of plain numbers, 0.9 for 256 of groups, and for 512 rows of blocks as much (docs/LOG.md).
FEW_PLAIN, FEW_IN_GROUPS = 64, 192
_GRIDS = {"IQ2_XXS": "IQ2_XXS", "IQ2_XS": "IQ2_XS", "IQ2_S": "IQ2_S", "IQ3_XXS": "IQ3_XXS", "IQ3_S": "IQ3_S", "IQ1_S": "IQ1_S", "IQ1_M": "IQ1_S"}


@cache
def formats() -> frozenset[str]:
    """The formats of blocks there are products for."""
    return frozenset(native.stored_formats()) - {"groups"} if native else frozenset()


def has_product(weight_FD: object, n_rows: int = 1) -> bool:
    """Whether this weight is multiplied with so many rows as it is stored, and not by torch."""
    most = FEW_IN_GROUPS if isinstance(weight_FD, GroupRows) else FEW_PLAIN if getattr(weight_FD, "format", None) in PLAIN else n_rows
    there = isinstance(weight_FD, GroupRows) or (isinstance(weight_FD, PackedRows) and weight_FD.format in formats())
    return there and n_rows <= most and native is not None and len(weight_FD.shape) == 2 and weight_FD.device.type == "cpu"  # type: ignore[attr-defined]


def multiply(variant: str, x_TD: Tensor, weight_FD: PackedWeight) -> Tensor:
    """x @ weight.T, float32. A row's result does not depend, bitwise, on the rows beside it or on the number of threads."""
    (T, D), (F, columns) = x_TD.shape, weight_FD.shape
    if columns != D:
        raise ValueError(f"rows of {D} numbers times a matrix of {F} x {columns}")
    if not T * D * F:
        return torch.zeros(T, F)
    x_TD, out_TF = x_TD.float().contiguous(), torch.empty(T, F)
    native.set_threads(n_threads())
    facts = described(weight_FD)
    native.matmul_stored(variant, *addresses(facts), x_TD.data_ptr(), T, 0, out_TF.data_ptr())
    return out_TF


def described(weight_FD: PackedWeight) -> tuple[str | int | float | Tensor, ...]:
    """What kernels ask of a weight: format, rows, their bytes, F, D, what codes mean, how many to a byte, the group, its scales and zeros, the zero of all."""
    (F, D), no = weight_FD.shape, torch.empty(0)
    if isinstance(weight_FD, GroupRows):
        rows, scales, zeros, zero = weight_FD.codes.contiguous(), weight_FD.scales.float().contiguous(), no, 0.0
        if isinstance(weight_FD.zeros, Tensor):
            zeros = weight_FD.zeros.float().contiguous()
        else:
            zero = float(weight_FD.zeros)
        return "groups", rows, rows.shape[1], F, D, table(weight_FD), 8 // weight_FD.width, weight_FD.group, scales, zeros, zero
    assert isinstance(weight_FD, PackedRows)
    rows = weight_FD.bytes.contiguous()
    points = grid(_GRIDS[weight_FD.format], rows.device) if weight_FD.format in _GRIDS else no
    return weight_FD.format, rows, rows.shape[1], F, D, points, 0, 0, no, no, 0.0


def addresses(facts: Sequence[str | int | float | Tensor]) -> list[str | int | float]:
    """The same with addresses for tensors, which have to live as long as they are used."""
    return [fact.data_ptr() if isinstance(fact, Tensor) else fact for fact in facts]
