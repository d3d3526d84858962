"""What the blocks of ggml's formats mean: bytes (N, bytes of a block) -> float32 (N, numbers of a block), the text that kernels are tested against.

The layouts are the structs of ggml-common.h, and each number is computed in the order of ggml-quants.c's dequantize_row_*, in float32:
https://github.com/ggml-org/llama.cpp/tree/aca2e6ce7909064dbfbf3bd168e9ad3db1826e6c/ggml/src. The formats with codebooks are in codebooks.py.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pellucid.errors import UnsupportedModel
from pellucid.ops import codebooks
from pellucid.ops.bits import bits, cut, half, planes
from pellucid.ops.groups import adjusted, put_back, unpack_groups
from pellucid.ops.panels import Panels
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.group_rows import Affine, GroupRows, Reordered
from pellucid.weights.packed_rows import PackedRows, PackedWeight

# What four bits mean in MXFP4 and NVFP4, twice E2M1's values, so that they are whole; the scales are halved for it.
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
# NVFP4's scales, halved: E4M3 without a sign, 0x7F (a NaN) read as zero.
_UE4M3 = tuple(0.0 if byte == 0x7F else math.ldexp(byte & 7, -10) if byte >> 3 & 15 == 0 else math.ldexp(8 + (byte & 7), (byte >> 3 & 15) - 11)
               for byte in range(256))


def unpack(rows: PackedWeight) -> Tensor:
    """The numbers, float32, of the shape the rows say. Raises UnsupportedModel for a format that is not one of weights."""
    if isinstance(rows, GroupRows):
        return unpack_groups(rows)
    if isinstance(rows, Affine):
        return adjusted(unpack(rows.rows), rows)
    if isinstance(rows, Reordered):
        return put_back(unpack(rows.rows), rows.order)
    if isinstance(rows, Panels):
        return rows.numbers(torch.arange(rows.rows))
    assert isinstance(rows, PackedRows)
    if rows.format not in UNPACK:
        raise UnsupportedModel(f"weights in the format {rows.format} are not read (read: {', '.join(UNPACK)})")
    return UNPACK[rows.format](rows.bytes.reshape(-1, BY_NAME[rows.format].n_bytes)).reshape(rows.shape)


def _q4_0(b: Tensor) -> Tensor:
    d, q = cut(b, 2, 16)
    return half(d) * (planes(q, 4).flatten(1).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    d, m, q = cut(b, 2, 2, 16)
    return half(d) * planes(q, 4).flatten(1) + half(m)


def _q5_0(b: Tensor) -> Tensor:
    d, high, q = cut(b, 2, 4, 16)
    return half(d) * ((planes(q, 4).flatten(1) | bits(high, 1).flatten(1) << 4).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    d, m, high, q = cut(b, 2, 2, 4, 16)
    return half(d) * (planes(q, 4).flatten(1) | bits(high, 1).flatten(1) << 4) + half(m)


def _q8_0(b: Tensor) -> Tensor:
    d, q = cut(b, 2, 32)
    return half(d) * q.view(torch.int8)


def _q2_k(b: Tensor) -> Tensor:
    scales, q, d, m = cut(b, 16, 64, 2, 2)
    scale, least = half(d) * (scales & 15), half(m) * (scales >> 4)
    return scale[..., None] * _quarters(q) - least[..., None]


def _q3_k(b: Tensor) -> Tensor:
    high, q, scales, d = cut(b, 32, 64, 12, 2)
    scale = planes(scales[:, :8], 4).flatten(1) | planes(scales[:, 8:], 2).flatten(1) << 4
    number = _quarters(q).float() + 4 * planes(high, 1).view(-1, 16, 16) - 4
    return (half(d) * (scale.float() - 32))[..., None] * number


def _q4_k(b: Tensor) -> Tensor:
    d, m, scales, q = cut(b, 2, 2, 12, 128)
    return _scaled(d, m, scales, planes(q.view(-1, 4, 32), 4).reshape(-1, 8, 32))


def _q5_k(b: Tensor) -> Tensor:
    d, m, scales, high, q = cut(b, 2, 2, 12, 32, 128)
    return _scaled(d, m, scales, planes(q.view(-1, 4, 32), 4).reshape(-1, 8, 32) | planes(high, 1) << 4)


def _q6_k(b: Tensor) -> Tensor:
    low, high, scales, d = cut(b, 128, 64, 16, 2)
    number = planes(low.view(-1, 2, 64), 4).reshape(-1, 16, 16) | _quarters(high) << 4
    return (half(d) * scales.view(torch.int8))[..., None] * (number.float() - 32)


def _tq1_0(b: Tensor) -> Tensor:
    """Five digits of base three a byte, as a fraction of 256: each multiplication by three brings the next before the point."""
    first, second, last, d = cut(b, 32, 16, 4, 2)
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.uint8, device=b.device)[:, None]
    shifted = torch.cat([(part[:, None] * powers[:n]).flatten(1) for part, n in ((first, 5), (second, 5), (last, 4))], 1)  # modulo 256
    return half(d) * ((shifted.int() * 3 >> 8) - 1)


def _tq2_0(b: Tensor) -> Tensor:
    q, d = cut(b, 64, 2)
    return half(d) * (_quarters(q).flatten(1).float() - 1)


def _mxfp4(b: Tensor) -> Tensor:
    exponent, q = cut(b, 1, 16)
    return torch.ldexp(_of(E2M1, planes(q, 4).flatten(1)), exponent.int() - 128)


def _nvfp4(b: Tensor) -> Tensor:
    scales, q = cut(b, 4, 32)
    return _of(_UE4M3, scales)[..., None] * _of(E2M1, planes(q.view(-1, 4, 8), 4).flatten(2))


def _quarters(q: Tensor) -> Tensor:
    """Two bits a number: (N, 64) -> (N, 16, 16); of each half's bytes the lowest bits come first, then the next ones."""
    return planes(q.view(-1, 2, 32), 2).reshape(-1, 16, 16)


def _scaled(d: Tensor, m: Tensor, scales: Tensor, number: Tensor) -> Tensor:
    """Q4_K's and Q5_K's eight groups of 32: a scale and a minimum of six bits each, of the last four groups the upper two among the first four's."""
    low, high = scales[:, :8], scales[:, 8:]
    scale = torch.cat([low[:, :4] & 63, high & 15 | low[:, :4] >> 6 << 4], 1)
    least = torch.cat([low[:, 4:] & 63, high >> 4 | low[:, 4:] >> 6 << 4], 1)
    return (half(d) * scale)[..., None] * number - (half(m) * least)[..., None]


def _of(values: tuple[float, ...], index: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=index.device)[index.int()]


UNPACK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": lambda b: b.contiguous().view(torch.float32), "F16": half, "BF16": lambda b: b.contiguous().view(torch.bfloat16).float(),
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, **codebooks.UNPACK,
    "TQ1_0": _tq1_0, "TQ2_0": _tq2_0, "MXFP4": _mxfp4, "NVFP4": _nvfp4,
}
