"""NF4, against bytes that bitsandbytes 0.50.2 wrote and the formula that its readers follow."""
from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from pellucid.ops.quantize import nf4

# quantize_4bit(x, blocksize=64, quant_type="nf4") of bitsandbytes 0.50.2 on a CPU, for `waves` below
CODES = ("78888655679aa864457acb953247bdc952238ced941138deea31028efea30029cdc942248cdd941138ded931139ded931139eee931139efe92003aefe92002aeec831149"
         "ded83114aded82114aeed82114aefd72014aefd72014befd71003bff")
ABSMAX = [0.12899409234523773, 0.25269538164138794, 0.3933708369731903]
STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 96]}


def waves() -> Tensor:
    """Two rows of 96: a block of 64 ends within a row."""
    return ((torch.arange(192).double() * 0.7).sin() * torch.linspace(0.01, 0.4, 192).double()).float().view(2, 96)


def numbers(codes: Tensor, absmax: Tensor, shape: tuple[int, int]) -> Tensor:
    """As dequantize_4bit reads them."""
    flat = torch.cat([codes >> 4, codes & 15], 1).flatten().long()
    return (torch.tensor(nf4.BOOK)[flat] * absmax[torch.arange(len(flat)) // 64]).view(shape)


def lost(x: Tensor, y: Tensor) -> float:
    return float((x - y).square().sum() / x.square().sum())


def heavy(rows: int = 30, columns: int = 202) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(rows, columns, generator=noise) / torch.rand(rows, columns, generator=noise).clamp(min=0.05).sqrt()


def test_codes_are_those_of_bitsandbytes_for_its_scales() -> None:
    assert nf4.codes(waves(), torch.tensor(ABSMAX)).numpy().tobytes().hex() == CODES


def test_a_code_is_that_of_the_nearest_value_to_the_last_bit_of_a_border() -> None:
    book = torch.tensor(nf4.BOOK)
    borders = (book[1:] + book[:-1]) / 2
    beside = [torch.nextafter(borders, torch.full_like(borders, to)) for to in (2, -2)]
    t = torch.cat([borders, *beside, torch.linspace(-1.3, 1.3, 100_001), torch.tensor([1e30, -1e30, 0.0, -0.0])])
    t = torch.nn.functional.pad(t, (0, -len(t) % 64)).view(-1, 64)
    found = nf4.codes(t, torch.ones(len(t)))
    assert torch.equal(torch.cat([found >> 4, found & 15], 1).view(t.shape), torch.bucketize(t, borders).byte())


def test_the_state_is_what_bitsandbytes_writes() -> None:
    assert json.loads(bytes(nf4.state((2, 96), torch.float32).tolist())) == STATE
    assert json.loads(bytes(nf4.state((3, 4), torch.bfloat16).tolist()))["dtype"] == "bfloat16"


@pytest.mark.parametrize("x", [waves(), heavy(), heavy(1, 64), heavy(3, 1000)])
def test_searched_scales_lose_less_than_the_largest_number(x: Tensor) -> None:
    blocks = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % 64)).view(-1, 64)
    largest, searched = blocks.abs().amax(-1), nf4.scales(x)
    assert searched.shape == largest.shape
    assert searched.dtype == torch.float32
    assert (searched >= 0).all()
    shape = tuple(x.shape)
    assert lost(x, numbers(nf4.codes(x, searched), searched, shape)) < 0.97 * lost(x, numbers(nf4.codes(x, largest), largest, shape))


def test_zeros_and_one_number_alone() -> None:
    x = torch.zeros(2, 64)
    x[1, 5] = -0.3
    absmax = nf4.scales(x)
    assert torch.allclose(numbers(nf4.codes(x, absmax), absmax, (2, 64)), x)


def test_many_blocks_are_as_each_alone() -> None:
    x = heavy(300, 512)
    absmax = nf4.scales(x)
    assert torch.equal(absmax[:8], nf4.scales(x[:1]))
    assert torch.equal(absmax[-8:], nf4.scales(x[-1:]))
    assert torch.equal(nf4.codes(x, absmax)[-256:], nf4.codes(x[-1:], absmax[-8:]))
