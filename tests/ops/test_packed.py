"""Products and tables over packed weights, by every backend, against the same numbers unpacked."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.ops import packed
from pellucid.ops.choose import BACKENDS, choose
from pellucid.ops.packed import rounded
from pellucid.ops.panels import native
from pellucid.ops.unpack import UNPACK, unpack
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows
from tests.test_ops import DTYPES, near, random

F, D = 9, 512


@pytest.fixture(params=BACKENDS)
def ops(request):
    return choose(request.param, "exact")


def weights(name: str, n_rows: int = F, dtype: torch.dtype = torch.float32) -> PackedRows:
    """Random blocks in whose every number is finite and modest."""
    of = BY_NAME[name]
    raw = np.random.default_rng(1).integers(0, 256, (40 * n_rows * D // of.n_numbers, of.n_bytes), dtype=np.uint8)
    numbers = unpack(PackedRows(torch.from_numpy(raw), name))
    plain = torch.from_numpy(raw)[(numbers.isfinite() & (numbers.abs() < 64)).all(-1)][: n_rows * D // of.n_numbers]
    return PackedRows(plain.reshape(n_rows, -1), name, dtype)


@pytest.mark.parametrize("name", UNPACK)
def test_matmul_and_embed(ops, name):
    roundings = 2 if ops.name == "training" else 1  # which rounds weights to the dtype, for the products of its tiles
    for dtype, T in itertools.product(DTYPES, (0, 1, 5)):
        weight, x, bias = weights(name, dtype=dtype), random(T, D, dtype=dtype), random(F, dtype=dtype, seed=2)
        dense = unpack(weight)
        assert dense.shape == (F, D)
        if T:
            near(ops.matmul(x, weight), x.float() @ dense.T, dtype, roundings)
            near(ops.matmul(x, weight, bias), x.float() @ dense.T + bias.float(), dtype, roundings)
        assert ops.matmul(x, weight).shape == (T, F)
        rows = torch.tensor([3, 0, 8, 3])
        assert torch.equal(ops.embed(weight, rows), dense[rows].to(dtype))
        assert torch.equal(ops.unpack(weight, dtype), dense.to(dtype))


def test_a_dense_weight_unpacks_to_itself(ops):
    weight = random(F, D)
    assert ops.unpack(weight, torch.float32) is weight
    assert torch.equal(ops.unpack(weight, torch.bfloat16), weight.bfloat16())


def test_float64_stays_float64(ops):
    weight, x = weights("Q4_K", dtype=torch.float64), random(5, D).double()
    assert (ops.matmul(x, weight) - x @ unpack(weight).double().T).abs().max() < 1e-11


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("native", "training")])  # whose blocks are others
def test_no_more_is_unpacked_at_once_than_a_block(backend, monkeypatch):
    ops = choose(backend, "exact")
    seen: list[tuple[int, ...]] = []

    def watched(rows: PackedRows) -> Tensor:
        seen.append(rows.shape)
        return unpack(rows)

    weight, x = weights("Q8_0"), random(5, D)
    expected = ops.matmul(x, weight)
    monkeypatch.setattr(packed, "unpack", watched)
    monkeypatch.setattr(packed, "BLOCK", 4 * D + 3)
    near(ops.matmul(x, weight), expected, torch.float32, 1)
    assert seen == [(4, D), (4, D), (1, D)]
    monkeypatch.setattr(packed, "BLOCK", 1)  # a row is the least
    near(ops.matmul(x, weight), expected, torch.float32, 1)
    assert seen[3:] == [(1, D)] * F


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_the_dense_product_and_keep_nothing_unpacked(ops, monkeypatch, dtype):
    monkeypatch.setattr(packed, "BLOCK", 4 * D)
    weight, kept = weights("Q5_K", dtype=dtype), []
    dense = unpack(weight)
    x, bias = random(5, D, dtype=dtype).requires_grad_(), random(F, dtype=dtype, seed=2).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = ops.matmul(x, weight, bias)
    grad = random(5, F, dtype=dtype, seed=3)
    out.backward(grad)
    near(x.grad, grad.float() @ dense, dtype, 2)
    near(bias.grad, grad.float().sum(0), dtype, 2)
    assert all(n < F * D for n in kept)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", UNPACK)
def test_int8_activations_are_rounded_for_whole_formats_and_only_there(backend, name):
    ops, weight, x = choose(backend, "int8"), weights(name), random(5, D)
    assert ops.activations == "int8"
    prepared = ops.prepare(weight)
    expected = (rounded(x) if name in packed.WHOLE else x).double() @ unpack(weight).double().T
    out = ops.matmul(x, prepared)
    assert (out - expected).abs().max() < 2e-6 * expected.abs().max()
    # A step is the largest of 32 / 127, some 2.1 / 127 of their size, and its error 1 / sqrt(12) of it: 0.5 %, more where a few blocks outweigh the rest.
    exact = x.double() @ unpack(weight).double().T
    assert (out - exact).norm() < 0.02 * exact.norm()
    x.requires_grad_()
    assert (ops.matmul(x, prepared) - exact).abs().max() < 2e-6 * exact.abs().max()  # what is trained is exact
    rows = torch.tensor([8, 0, 8])
    assert torch.equal(ops.embed(prepared, rows), unpack(weight)[rows])
    assert torch.equal(ops.unpack(prepared, torch.float32), unpack(weight))


def test_rounded_keeps_what_is_whole_and_breaks_ties_to_even():
    x = torch.zeros(1, 64)
    x[0, :6] = torch.tensor([127.0, -126.0, 0.5, 1.5, -2.5, 0.4])
    x[0, 32:34] = torch.tensor([2.0**-101, -(2.0**-103)])
    assert rounded(x)[0, :6].tolist() == [127, -126, 0, 2, -2, 0]
    assert not rounded(x)[0, 6:].any()


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_is_not_rounded_away(backend, bad):
    ops, x = choose(backend, "int8"), random(3, D)
    x[1, 40] = bad
    out = ops.matmul(x, ops.prepare(weights("Q4_0")))
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


@pytest.mark.native
def test_the_whole_formats_are_those_of_the_kernels():
    assert tuple(native.formats()) == packed.WHOLE
