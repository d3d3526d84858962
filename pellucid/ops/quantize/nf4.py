"""NF4 as bitsandbytes stores it: blocks of 64 numbers through all rows, a float32 scale each, codes of four bits into sixteen values of a normal distribution.

QuantState.as_dict and create_normal_map of
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/95f9af309d4d5793847169c39288dcd3fcbdf564/bitsandbytes/functional.py; the values are those of
https://arxiv.org/abs/2305.14314, appendix E. There a scale is the block's largest number; here it is searched, and read by the same programs.
"""
from __future__ import annotations

import json

import torch
from torch import Tensor

from pellucid.ops.quantize.search import fit_scale, inverse

BLOCK = 64
BOOK = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
_STARTS = (0.85, 0.89, 0.93, 0.96, 0.98, 1.0, 1.02, 1.05)  # that the largest number goes to: above 1 it is cut off
_FINE = 2048  # cells between 0 and 1 of the table that finds a level while scales are searched; the last look is exact
_PART = 1 << 16  # numbers at once


def scales(x: Tensor) -> Tensor:
    """What the file calls absmax: the scale of each block of 64, float32, of the matrix read row after row. None is negative."""
    return torch.cat([fit_scale(part, weight, _near, _STARTS, positive=True)[:, 0] for part, weight in _blocks(x)])


def codes(x: Tensor, absmax: Tensor) -> Tensor:
    """The matrix as bytes of two codes, the first one in the upper bits: (n/2, 1), uint8."""
    found = [_code(part * inverse(d[:, None])).flatten() for (part, _), d in zip(_blocks(x), absmax.split(_PART // BLOCK), strict=True)]
    pairs = torch.cat(found)[: x.numel()].view(-1, 2)
    return (pairs[:, :1] << 4 | pairs[:, 1:]).contiguous()


def state(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The bytes of X.quant_state.bitsandbytes__nf4; dtype: what the matrix was, and becomes again."""
    facts = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": str(dtype).removeprefix("torch."), "shape": list(shape)}
    return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)


def _blocks(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(numbers, weights) of so many blocks at once; what the last one lacks is zeros that count nothing."""
    flat, weight = x.reshape(-1).float(), torch.ones(x.numel())
    more = -len(flat) % BLOCK
    flat, weight = (torch.nn.functional.pad(t, (0, more)).view(-1, BLOCK) for t in (flat, weight))
    return list(zip(flat.split(_PART // BLOCK), weight.split(_PART // BLOCK), strict=True))


def _near(t: Tensor) -> Tensor:
    """The value next to t, but for t so near to two that the table's cell holds both."""
    return _TABLE.index_select(0, _cell(t).flatten()).view_as(t)


def _code(t: Tensor) -> Tensor:
    """Which value is next to t, the lower one between two: exactly, as its cell tells all but one border from it, and that one is compared."""
    cell = _cell(t).flatten()
    return _BELOW.index_select(0, cell).view_as(t) + (t > _BORDER.index_select(0, cell).view_as(t)).byte()


def _cell(t: Tensor) -> Tensor:
    return (t * _FINE).add_(_FINE).clamp_(0, 2 * _FINE).int()


def _table() -> tuple[Tensor, Tensor, Tensor]:
    """For every cell: the value next to its middle, how many borders lie in cells below, and the border it holds, if any."""
    book = torch.tensor(BOOK)
    borders, cells = (book[1:] + book[:-1]) / 2, torch.arange(2 * _FINE + 1)
    held = torch.full((2 * _FINE + 1,), torch.inf)
    held[_cell(borders)] = borders
    return book[torch.bucketize((cells + 0.5) / _FINE - 1, borders)], torch.bucketize(cells, _cell(borders)).byte(), held


_TABLE, _BELOW, _BORDER = _table()
