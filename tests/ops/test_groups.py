"""Matrices in groups and in another order of columns: what their codes mean, by formula, and that every backend multiplies with the same numbers."""
from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.ops import packed
from pellucid.ops.choose import BACKENDS, choose
from pellucid.ops.packed import is_whole
from pellucid.ops.unpack import unpack
from pellucid.weights.group_rows import Affine, GroupRows, Reordered, as_blocks, pack, spread
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from tests.test_ops import DTYPES, near, random

F, D = 9, 96
BOOK = torch.tensor([-1.0, -0.7, -0.52, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.24, 0.34, 0.44, 0.56, 0.72, 1.0])


@pytest.fixture(params=BACKENDS)
def ops(request):
    return choose(request.param, "exact")


def numbers(low: int, high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(low, high, shape).astype(np.uint8))


def rows(kind: str, group: int = 40, dtype: torch.dtype = torch.float32) -> GroupRows:
    """Random rows of one kind; 40 columns a group leave 16 for the third."""
    n_groups = -(-D // group)
    scales = (torch.rand(F, n_groups, generator=torch.Generator().manual_seed(2)) / 8 + 0.01).half()
    how = {"group": group, "n_columns": D, "dtype": dtype}
    if kind in ("int2", "int4", "int8"):
        width = int(kind[3:])
        return GroupRows(codes=numbers(0, 256, F, D * width // 8), scales=scales, width=width, zeros=numbers(0, 1 << width, F, n_groups, seed=1), **how)
    if kind == "signed":
        return GroupRows(codes=numbers(0, 256, F, D), scales=scales.float() * 1.1, byte=torch.int8, **how)
    if kind == "even":
        return GroupRows(codes=numbers(0, 256, F, D // 2), scales=scales, width=4, zeros=8, **how)
    if kind == "book":
        return GroupRows(codes=numbers(0, 256, F, D // 2), scales=scales.float(), width=4, book=BOOK, **how)
    assert kind == "fp8"
    codes = (random(F, D, seed=4) * 4).to(torch.float8_e4m3fn).view(torch.uint8)
    return GroupRows(codes=codes, scales=scales.float(), byte=torch.float8_e4m3fn, **how)


KINDS = ("int2", "int4", "int8", "signed", "even", "book", "fp8")


def by_formula(weight: GroupRows) -> Tensor:
    """Number by number, in float64."""
    out = torch.empty(F, D, dtype=torch.float64)
    for r, c in itertools.product(range(F), range(D)):
        each = 8 // weight.width
        code = int(weight.codes[r, c // each]) >> weight.width * (c % each) & (1 << weight.width) - 1
        zero = weight.zeros if isinstance(weight.zeros, int) else int(weight.zeros[r, c // weight.group])
        if weight.book is not None:
            value = float(weight.book[code])
        elif weight.byte == torch.uint8:
            value = code - zero
        elif weight.byte == torch.int8:
            value = code - 256 * (code > 127)
        else:
            sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
            value = (-1) ** sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        out[r, c] = value * float(weight.scales[r, c // weight.group])
    return out


@pytest.mark.parametrize("group", [40, 32, 96, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_is_what_its_code_means_times_the_scale_of_its_group(kind, group):
    weight = rows(kind, group)
    assert weight.shape == (F, D)
    found = unpack(weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, by_formula(weight).float())


@pytest.mark.parametrize("kind", KINDS)
def test_matmul_and_embed(ops, kind):
    roundings = 2 if ops.name == "training" else 1  # which rounds weights to the dtype, for the products of its tiles
    for dtype, T in itertools.product(DTYPES, (0, 1, 5)):
        weight, x, bias = rows(kind, dtype=dtype), random(T, D, dtype=dtype), random(F, dtype=dtype, seed=2)
        dense = unpack(weight)
        if T:
            near(ops.matmul(x, weight, bias), x.float() @ dense.T + bias.float(), dtype, roundings)
        assert ops.matmul(x, weight).shape == (T, F)
        some = torch.tensor([3, 0, 8, 3])
        assert torch.equal(ops.embed(weight, some), dense[some].to(dtype))
        assert torch.equal(ops.unpack(weight, dtype), dense.to(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_in_another_order_are_put_back(ops, kind):
    order = torch.from_numpy(np.random.default_rng(5).permutation(D))
    inner, x = rows(kind), random(5, D).requires_grad_()
    weight = Reordered(inner, order)
    dense = torch.empty(F, D)
    for c, stored in zip(order.tolist(), unpack(inner).T, strict=True):
        dense[:, c] = stored
    assert weight.shape == (F, D)
    assert torch.equal(ops.unpack(weight, torch.float32), dense)
    assert torch.equal(unpack(weight[2:5]), dense[2:5])
    assert torch.equal(ops.embed(weight, torch.tensor([8, 1])), dense[[8, 1]])
    out = ops.matmul(x, weight)
    near(out.detach(), x.detach() @ dense.T, torch.float32, 1)
    out.backward(grad := random(5, F, seed=3))
    near(x.grad, grad @ dense, torch.float32, 2)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("native", "training")])  # whose blocks are others
def test_no_more_is_unpacked_at_once_than_a_block(backend, monkeypatch):
    ops = choose(backend, "exact")
    seen: list[tuple[int, ...]] = []

    def watched(part: PackedWeight) -> Tensor:
        seen.append(part.shape)
        return unpack(part)

    weight, x = rows("int4"), random(5, D)
    expected = ops.matmul(x, weight)
    monkeypatch.setattr(packed, "unpack", watched)
    monkeypatch.setattr(packed, "BLOCK", 4 * D + 3)
    near(ops.matmul(x, weight), expected, torch.float32, 1)
    assert seen == [(4, D), (4, D), (1, D)]


@pytest.mark.parametrize("group", [32, 64, 96, 128])
@pytest.mark.parametrize(("kind", "format"), [("even", "Q4_0"), ("int4", "Q4_1"), ("signed", "Q8_0"), ("int8", "Q8_0")])
def test_the_blocks_of_gguf_hold_the_same_bits_where_they_can(kind, format, group):
    """Of asymmetric codes the product of zero and scale must be a float16, as it is of small scales that are powers of two."""
    weight = rows(kind, group)
    powers = (2.0 ** numbers(0, 6, *weight.scales.shape).float() / 64).half()
    if kind == "int8":
        weight = GroupRows(codes=weight.codes, scales=weight.scales, group=group, n_columns=D, zeros=128)
    weight = GroupRows(codes=weight.codes, scales=weight.scales if kind in ("even", "int8") else powers, group=group, n_columns=D, width=weight.width,
                       byte=weight.byte, zeros=weight.zeros, dtype=torch.bfloat16)
    blocks = as_blocks(weight)
    assert isinstance(blocks, PackedRows)
    assert (blocks.format, blocks.shape, blocks.dtype) == (format, (F, D), torch.bfloat16)
    assert torch.equal(unpack(blocks), unpack(weight))


def of(weight: GroupRows, **changed: Any) -> GroupRows:
    return replace(weight, **changed)


ODD = torch.rand(F, 1, generator=torch.Generator().manual_seed(3)) / 8  # no float16
# Zeros where a block has none; scales of whole rows that are no float16, past it, below it; both a zero that is the same for all and one of each width.
BESIDE = {"zeros4": (rows("int4", 32), "Q4_0"), "zeros8": (rows("int8", 64), "Q8_0"), "one zero": (of(rows("int4", 96), zeros=3), "Q4_0"),
          "signed zeros": (of(rows("int8", 32), byte=torch.int8, zeros=numbers(0, 256, F, 3).short() - 128), "Q8_0"),
          "odd scale": (of(rows("even", 96), scales=ODD), "Q4_0"), "odd scale of bytes": (of(rows("int8", 128), scales=ODD, zeros=128), "Q8_0"),
          "odd scale of signed": (of(rows("signed", 96), scales=ODD), "Q8_0"), "large": (of(rows("even", 96), scales=ODD * 1e7), "Q4_0"),
          "small": (of(rows("even", 96), scales=ODD * 1e-9), "Q4_0")}


@pytest.mark.parametrize("name", BESIDE)
def test_zeros_and_scales_that_blocks_have_no_place_for_stand_beside_them(ops, name):
    """Bit for bit the same numbers, and products of them as close as any."""
    weight, format = BESIDE[name]
    made = as_blocks(weight)
    assert isinstance(made, Affine)
    assert isinstance(made.rows, PackedRows)
    assert (made.rows.format, made.shape) == (format, (F, D))
    dense = unpack(weight)
    assert torch.equal(unpack(made), dense)
    assert torch.equal(unpack(made[2:7]), dense[2:7])
    assert torch.equal(ops.embed(made, torch.tensor([8, 0, 8])), dense[[8, 0, 8]])
    for dtype in (dtype for dtype in DTYPES if 100 * dense.abs().max() < torch.finfo(dtype).max):
        x, bias = random(5, D, dtype=dtype), random(F, dtype=dtype, seed=2)
        near(ops.matmul(x, made.to(made.device, dtype), bias), x.float() @ dense.T + bias.float(), dtype, 2)
    x = random(5, D).requires_grad_()
    ops.matmul(x, Reordered(made, torch.arange(D))).backward(grad := random(5, F, seed=3))
    near(x.grad, grad @ dense, torch.float32, 2)
    assert made.nbytes == made.rows.nbytes + sum(4 * part.numel() for part in (made.gain, made.shift) if part is not None)


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounded_activations_reach_the_blocks_inside(backend, name):
    weight, x = Reordered(as_blocks(BESIDE[name][0]), torch.arange(D).flip(0)), random(5, D)
    backend = choose(backend, "int8")
    assert is_whole(weight)
    found = backend.matmul(x, backend.prepare(weight))
    exact = x @ unpack(weight).T
    near(found, choose("reference", "int8").matmul(x, weight), torch.float32, 2)
    assert 0 < (found - exact).abs().max() < 0.01 * exact.abs().max()


@pytest.mark.parametrize("weight", [
    rows("even", 40),  # a block would span two groups
    of(rows("int4", 32), scales=torch.rand(F, 3)), rows("signed", 32),  # scales of groups that are no float16
    of(rows("int4", 96), scales=ODD),  # a zero times such a scale is rounded
    rows("fp8", 32), rows("book", 32), rows("int2", 32),
    GroupRows(codes=numbers(0, 256, F, 41), scales=torch.ones(F, 1), group=82, n_columns=82, width=4, zeros=8),  # no whole number of blocks
])
def test_what_no_block_holds_exactly_stays_as_it_is(weight):
    assert as_blocks(weight) is weight
    assert not is_whole(weight)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_codes_lie_one_after_another_in_a_row_of_bits(width):
    codes = numbers(0, 1 << width, 3, 32, seed=6)
    row = [sum(int(code) << width * i for i, code in enumerate(each)).to_bytes(4 * width, "little") for each in codes]
    packed_bytes = torch.tensor([list(each) for each in row], dtype=torch.uint8)
    assert torch.equal(spread(packed_bytes, width), codes)
    assert torch.equal(spread(packed_bytes.view(torch.int32), width), codes)
    if width != 3:
        assert torch.equal(pack(codes, width), packed_bytes)


def test_a_row_that_ends_inside_a_byte_is_filled_up_with_zeros():
    codes = torch.tensor([[1, 2, 3], [15, 0, 9]], dtype=torch.uint8)
    assert pack(codes, 4).tolist() == [[0x21, 0x03], [0x0F, 0x09]]
    assert pack(codes & 3, 2).tolist() == [[0x39], [0x13]]


def test_a_weight_on_its_way_to_a_device_keeps_its_numbers_and_counts_its_bytes():
    weight = Reordered(rows("int4"), torch.arange(D).flip(0))
    moved = weight.to(torch.device("cpu"), torch.float16)
    assert (moved.dtype, moved.rows.dtype, moved.device.type) == (torch.float16, torch.float16, "cpu")
    assert torch.equal(unpack(moved), unpack(weight))
    assert moved.nbytes == F * (D // 2 + 3 * 2 + 3) + 8 * D
