"""The formats whose bits point into a codebook: eight or four numbers at once out of a grid, or one out of sixteen values that are not evenly spaced.

The grids are data of ggml (MIT), iq2xxs_grid and so on of ggml-common.h, written compactly in codebooks.toml: `values` are the steps of a coordinate,
`points` the steps' numbers, the first in the lowest bits of the first byte. tests/ops/test_unpack.py holds them against the gguf package. As in
unpack.py: bytes (N, bytes of a block) -> float32 (N, ...) in the order of the numbers.
"""
from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from pellucid.ops.bits import bits, cut, half, planes, word

# Of IQ4_NL and IQ4_XS: kvalues_iq4nl of ggml-common.h
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_DELTA = 0.125  # IQ1S_DELTA of ggml-common.h


@cache
def grid(name: str, device: torch.device) -> Tensor:
    """The points of a grid, (points, 8 or 4), float32."""
    facts = tomllib.loads(resources.files("pellucid.ops").joinpath("codebooks.toml").read_text(encoding="ascii"))[name]
    packed = torch.frombuffer(bytearray(base64.b64decode(facts["points"])), dtype=torch.uint8)
    steps = bits(packed, facts["bits"]).flatten().int()
    return torch.tensor(facts["values"], dtype=torch.float32)[steps].view(-1, facts["width"]).to(device)


def _points(name: str, index: Tensor) -> Tensor:
    return torch.nn.functional.embedding(index.long(), grid(name, index.device))


def _signs(byte: Tensor) -> Tensor:
    """A sign a bit, set for minus: (..., 8)."""
    return 1 - 2 * bits(byte.to(torch.uint8), 1).float()


def _even(seven: Tensor) -> Tensor:
    """Eight bits of which seven are stored: minus signs come in even numbers. (ksigns_iq2xs of ggml-common.h)"""
    parity = seven ^ seven >> 4
    parity = parity ^ parity >> 2
    return seven | ((parity ^ parity >> 1) & 1) << 7


def _sevens(w: Tensor) -> Tensor:
    """The four groups of seven bits of a word: (..., 4)."""
    return w[..., None] >> torch.tensor([0, 7, 14, 21], device=w.device) & 127


def _threes(w: Tensor) -> Tensor:
    """The four groups of three bits of a word: (..., 4)."""
    return w[..., None] >> torch.tensor([0, 3, 6, 9], device=w.device) & 7


def _iq2_xxs(b: Tensor) -> Tensor:
    d, rest = cut(b, 2, 64)
    index, w = cut(rest.view(-1, 8, 8), 4, 4)
    w = word(w, 4)[..., 0]
    scale = half(d) * (0.5 + (w >> 28).float()) * 0.25
    return scale[..., None, None] * _points("IQ2_XXS", index) * _signs(_even(_sevens(w)))


def _iq2_xs(b: Tensor) -> Tensor:
    d, q, scales = cut(b, 2, 64, 8)
    q = word(q, 2).view(-1, 16, 2)
    scale = half(d) * (0.5 + bits(scales, 4).flatten(1).float()) * 0.25
    return scale[..., None, None] * _points("IQ2_XS", q & 511) * _signs(_even(q >> 9))


def _iq2_s(b: Tensor) -> Tensor:
    d, low, signs, high, scales = cut(b, 2, 32, 32, 8, 8)
    index = low.int() | bits(high, 2).flatten(1).int() << 8
    scale = half(d) * (0.5 + bits(scales, 4).flatten(1).float()) * 0.25
    return scale[..., None, None] * _points("IQ2_S", index.view(-1, 16, 2)) * _signs(signs.view(-1, 16, 2))


def _iq3_xxs(b: Tensor) -> Tensor:
    d, index, w = cut(b, 2, 64, 32)
    w = word(w, 4)
    scale = half(d) * (0.5 + (w >> 28).float()) * 0.5
    return scale[..., None, None] * _points("IQ3_XXS", index).view(-1, 8, 4, 8) * _signs(_even(_sevens(w)))


def _iq3_s(b: Tensor) -> Tensor:
    d, low, high, signs, scales = cut(b, 2, 64, 8, 32, 4)
    index = low.int() | bits(high, 1).flatten(1).int() << 8
    scale = half(d) * (1 + 2 * bits(scales, 4).flatten(1).float())
    return scale[..., None, None] * _points("IQ3_S", index).view(-1, 8, 4, 8) * _signs(signs).view(-1, 8, 4, 8)


def _iq1_s(b: Tensor) -> Tensor:
    d, low, w = cut(b, 2, 32, 16)
    w = word(w, 2)
    index = low.view(-1, 8, 4) | _threes(w) << 8
    scale, delta = half(d) * (2 * (w >> 12 & 7) + 1), _DELTA * (1 - 2 * (w >> 15).float())
    return scale[..., None, None] * (_points("IQ1_S", index) + delta[..., None, None])


def _iq1_m(b: Tensor) -> Tensor:
    """Its scale has no place of its own: the upper four bits of the words that hold the groups' scales make a float16."""
    low, high, scales = cut(b, 32, 16, 8)
    w, four = word(scales, 2), bits(high, 4).view(-1, 16, 2)
    d = half(_tops(w))
    scale, delta = d * (2 * _threes(w).flatten(1) + 1), _DELTA * (1 - 2 * (four >> 3).float())
    index = low.view(-1, 16, 2).int() | (four & 7).int() << 8
    return scale[..., None, None] * (_points("IQ1_S", index) + delta[..., None])


def _tops(w: Tensor) -> Tensor:
    """The upper four bits of four words of 16, the first lowest, as two bytes: (N, 4) -> (N, 2)."""
    top = (w >> 12).to(torch.uint8)
    return top[:, ::2] | top[:, 1::2] << 4


def _iq4_nl(b: Tensor) -> Tensor:
    d, q = cut(b, 2, 16)
    return half(d) * _uneven(planes(q, 4).flatten(1))


def _iq4_xs(b: Tensor) -> Tensor:
    d, high, low, q = cut(b, 2, 2, 4, 128)
    scale = (bits(low, 4).flatten(1) | bits(high, 2).flatten(1) << 4).float() - 32
    return (half(d) * scale)[..., None] * _uneven(planes(q.view(-1, 8, 16), 4).flatten(2))


def _uneven(q: Tensor) -> Tensor:
    return torch.tensor(IQ4, dtype=torch.float32, device=q.device)[q.int()]


UNPACK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s, "IQ1_S": _iq1_s, "IQ1_M": _iq1_m,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}
