"""What packed bytes mean, for kernels of Triton: a group of columns that share a scale is whole numbers (codes), a scale and a shift.

    number[f, c] = code[f, c] * scale[f, g] + shift[f, g]       g = c // group

Codes have at most nine bits with their sign: float16 and bfloat16 hold each one exactly, so a product of codes with activations rounds no weight. The layouts
are those of ops/unpack.py, which has their source; tests/ops/test_triton.py holds every format against it.
"""
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from pellucid.weights.gguf import BY_NAME


@dataclass(frozen=True, slots=True)
class Groups:
    """Columns that share a scale, and bytes of a block of so many of these groups."""

    size: int
    each: int
    n_bytes: int


def _of(name: str, size: int) -> Groups:
    return Groups(size, BY_NAME[name].n_numbers // size, BY_NAME[name].n_bytes)


FORMATS = {**{name: _of(name, 32) for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "MXFP4", "TQ2_0")},
           **{name: _of(name, 16) for name in ("Q2_K", "Q3_K", "Q6_K", "NVFP4")}}


@triton.jit
def byte(at):
    return tl.load(at).to(tl.int32)


@triton.jit
def signed(at):
    return tl.load(at.to(tl.pointer_type(tl.int8))).to(tl.int32)


@triton.jit
def half(at):
    """float16, as it lies at an even address: every block with one has an even number of bytes."""
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def quarter(at, n):
    """Two bits of number n of 256: of each half's 32 bytes the lowest bits come first."""
    return byte(at + n // 128 * 32 + n % 32) >> n % 128 // 32 * 2 & 3


@triton.jit
def nibble(at, c):
    """Four bits of number c of 32: the first sixteen are the low halves of the bytes."""
    return byte(at + c % 16) >> c // 16 * 4 & 15


@triton.jit
def e2m1(q):
    """Twice what four bits mean in MXFP4 and NVFP4, a whole number: the sign, two bits of exponent and one of mantissa."""
    exponent = q >> 1 & 3
    size = tl.where(exponent == 0, q & 1, (2 + (q & 1)) << tl.maximum(exponent - 1, 0))
    return tl.where(q & 8 != 0, -size, size)


@triton.jit
def codes(at, book, g, c, FORMAT: tl.constexpr):
    """The whole numbers of columns c of group g, of the block that begins `at`. book: values of codes that are not evenly spaced, float32."""
    if FORMAT == "Q4_0":
        return nibble(at + 2, c) - 8
    elif FORMAT == "Q4_1":
        return nibble(at + 4, c)
    elif FORMAT == "Q5_0":
        return (nibble(at + 6, c) | (byte(at + 2 + c // 8) >> c % 8 & 1) << 4) - 16
    elif FORMAT == "Q5_1":
        return nibble(at + 8, c) | (byte(at + 4 + c // 8) >> c % 8 & 1) << 4
    elif FORMAT == "Q8_0":
        return signed(at + 2 + c)
    elif FORMAT == "Q2_K":
        return quarter(at + 16, g * 16 + c)
    elif FORMAT == "Q3_K":
        n = g * 16 + c
        return quarter(at + 32, n) + (byte(at + n % 32) >> n // 32 & 1) * 4 - 4
    elif FORMAT == "Q4_K":
        return byte(at + 16 + g // 2 * 32 + c) >> g % 2 * 4 & 15
    elif FORMAT == "Q5_K":
        return (byte(at + 48 + g // 2 * 32 + c) >> g % 2 * 4 & 15) | (byte(at + 16 + c) >> g & 1) << 4
    elif FORMAT == "Q6_K":
        n = g * 16 + c
        return (byte(at + n // 128 * 64 + n % 64) >> n % 128 // 64 * 4 & 15 | quarter(at + 128, n) << 4) - 32
    elif FORMAT == "IQ4_NL":
        return tl.load(book + nibble(at + 2, c))
    elif FORMAT == "IQ4_XS":
        return tl.load(book + nibble(at + 8 + g * 16, c))
    elif FORMAT == "MXFP4":
        return e2m1(nibble(at + 1, c))
    elif FORMAT == "NVFP4":
        return e2m1(byte(at + 4 + g * 8 + c % 8) >> c // 8 * 4 & 15)
    else:
        tl.static_assert(FORMAT == "TQ2_0")
        return quarter(at, g * 32 + c) - 1


@triton.jit
def scale(at, g, FORMAT: tl.constexpr):
    """The scale of group g, float32."""
    if FORMAT == "Q2_K":
        return half(at + 80) * (byte(at + g) & 15).to(tl.float32)
    elif FORMAT == "Q3_K":
        six = (byte(at + 96 + g % 8) >> g // 8 * 4 & 15) | (byte(at + 104 + g % 4) >> g // 4 * 2 & 3) << 4
        return half(at + 108) * (six - 32).to(tl.float32)
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        # Six bits; of the last four groups the upper two lie above the first four's.
        later = (byte(at + 8 + g % 4 + 4) & 15) | byte(at + 4 + g % 4) >> 6 << 4
        return half(at) * tl.where(g < 4, byte(at + 4 + g % 4) & 63, later).to(tl.float32)
    elif FORMAT == "Q6_K":
        return half(at + 208) * signed(at + 192 + g).to(tl.float32)
    elif FORMAT == "IQ4_XS":
        six = (byte(at + 4 + g // 2) >> g % 2 * 4 & 15) | (byte(at + 2 + g // 4) >> g % 4 * 2 & 3) << 4
        return half(at) * (six - 32).to(tl.float32)
    elif FORMAT == "MXFP4":
        e = byte(at)  # 2 ** (e - 128), by its bits: the two least are subnormal
        return tl.where(e > 1, (e - 1) << 23, 0x200000 << tl.minimum(e, 1)).to(tl.float32, bitcast=True)
    elif FORMAT == "NVFP4":
        s = byte(at + g)  # E4M3 without a sign, halved; 0x7F is read as zero
        least, e = (s & 7).to(tl.float32) * 0.0009765625, s >> 3 & 15
        some = ((e + 119) << 23 | (s & 7) << 20).to(tl.float32, bitcast=True)
        return tl.where(s == 0x7F, 0.0, tl.where(e == 0, least, some))
    elif FORMAT == "TQ2_0":
        return half(at + 64)
    else:
        return half(at)


@triton.jit
def shift(at, g, FORMAT: tl.constexpr):
    """What is added to every number of group g, float32; called where `SHIFTED` says so."""
    if FORMAT == "Q2_K":
        return -half(at + 82) * (byte(at + g) >> 4).to(tl.float32)
    elif FORMAT == "Q4_K" or FORMAT == "Q5_K":
        later = byte(at + 8 + g % 4 + 4) >> 4 | byte(at + 8 + g % 4) >> 6 << 4
        return -half(at + 2) * tl.where(g < 4, byte(at + 8 + g % 4) & 63, later).to(tl.float32)
    else:
        tl.static_assert(FORMAT == "Q4_1" or FORMAT == "Q5_1")
        return half(at + 2)


SHIFTED = ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K")
