"""Every format that is written: what is read back, how much is lost, and what is refused."""
from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.errors import BadCheckpoint, BadRequest
from pellucid.ops.quantize.pack import PACK
from pellucid.ops.quantize.rows import PART, quantize_rows
from pellucid.ops.unpack import unpack
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedRows

PACKED = [name for name in PACK if name not in ("F32", "F16", "BF16")]
F, D = 21, 512


def rows(kind: str = "normal", n_rows: int = F, d: int = D, seed: int = 0) -> Tensor:
    """Weights as models have them, of which some are heavy-tailed."""
    of = np.random.default_rng(seed)
    return torch.from_numpy(0.02 * (of.standard_normal((n_rows, d)) if kind == "normal" else of.standard_t(3, (n_rows, d)))).float()


def lost(x: Tensor, y: Tensor, w: Tensor | None = None) -> float:
    """Of the sum of squares."""
    w = torch.ones(x.shape[-1]) if w is None else w
    return float((w * (x - y) ** 2).sum() / (w * x ** 2).sum())


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("name", PACKED)
def test_no_more_is_lost_than_by_so_many_even_steps(name: str, kind: str) -> None:
    """Of n numbers between -a and a in even steps of 2a / (2 ** bits - 1), each is off by half a step at most: the square by a third of that on average."""
    x = rows(kind)
    bits = {"Q2_K": 2, "Q3_K": 3, "Q6_K": 6, "Q8_0": 8, "MXFP4": 3}.get(name, 5 if name.startswith("Q5") else 4)
    length = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}.get(name, 32)
    reach = x.view(F, -1, length).abs().amax(-1)
    step = 2 * reach / (2 ** bits - 1)
    assert lost(x, unpack(quantize_rows(x, name))) < float((step ** 2 / 12 * length).sum() / (x ** 2).sum())


@pytest.mark.parametrize("kind", ["normal", "heavy"])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"])
def test_less_is_lost_than_by_plain_rounding(name: str, kind: str) -> None:
    """The gguf package rounds to the scale that the farthest number gives."""
    x = rows(kind)
    plain = gguf.quants.quantize(x.numpy(), GGMLQuantizationType[name])
    ours, theirs = quantize_rows(x, name), PackedRows(torch.from_numpy(plain), name)
    assert ours.bytes.shape == theirs.bytes.shape
    assert lost(x, unpack(ours)) < 0.97 * lost(x, unpack(theirs))


@pytest.mark.parametrize(("name", "factor"), [("Q4_K", 1.0), ("Q5_K", 1.0), ("IQ4_XS", 1.03), ("Q6_K", 1.0), ("Q3_K", 1.0)])
def test_scales_of_a_few_bits_cost_little(name: str, factor: float) -> None:
    """A block of 256 loses hardly more than its parts do alone with plain rounding and a float32 scale (and a minimum) each."""
    x = rows("heavy")
    n, lowest, top = {"Q4_K": (32, None, 15), "Q5_K": (32, None, 31), "Q6_K": (16, -32, 31), "Q3_K": (16, -4, 3), "IQ4_XS": (32, -8, 7)}[name]
    parts = x.view(-1, n)
    if lowest is None:
        low, high = parts.amin(-1, keepdim=True).clamp(max=0), parts.amax(-1, keepdim=True)
        d = (high - low) / top
        plain = d * ((parts - low) / d).round() + low
    else:
        d = parts.gather(-1, parts.abs().argmax(-1, keepdim=True)) / lowest
        plain = d * (parts / d).round().clamp(lowest, top)
    assert lost(x, unpack(quantize_rows(x, name))) < factor * lost(x, plain.view_as(x))


@pytest.mark.parametrize("name", PACKED)
def test_importance_moves_the_error_to_where_it_counts_less(name: str) -> None:
    x, importance = rows("heavy"), torch.rand(D, generator=torch.Generator().manual_seed(1)) ** 4
    plain, weighted = unpack(quantize_rows(x, name)), unpack(quantize_rows(x, name, importance))
    assert lost(x, weighted, importance) < 0.99 * lost(x, plain, importance)
    assert lost(x, weighted) > lost(x, plain)


@pytest.mark.parametrize("name", PACKED)
def test_only_the_proportions_of_importance_count(name: str) -> None:
    x, importance = rows(n_rows=3), torch.rand(D, generator=torch.Generator().manual_seed(1))
    expected = quantize_rows(x, name, importance).bytes
    assert torch.equal(quantize_rows(x, name, importance * 2 ** 20).bytes, expected)
    assert torch.equal(quantize_rows(x, name, torch.full((D,), 3.0)).bytes, quantize_rows(x, name).bytes)


@pytest.mark.parametrize("name", PACKED)
def test_what_calibration_never_saw_still_counts(name: str) -> None:
    """Columns of no importance are rounded by what else there is; a row of them all as if there were no importance."""
    x, unseen = rows(n_rows=5), torch.ones(D)
    unseen[:256] = 0
    found = unpack(quantize_rows(x, name, unseen))
    assert lost(x[:, :256], found[:, :256]) < 1.3 * lost(x[:, 256:], found[:, 256:])
    assert torch.equal(quantize_rows(x, name, torch.zeros(D)).bytes, quantize_rows(x, name).bytes)


@pytest.mark.parametrize("name", PACK)
def test_a_row_does_not_depend_on_the_rows_beside_it(name: str) -> None:
    x = rows(n_rows=PART * max(2, torch.get_num_threads()) // D + 7)  # so that they are done in two parts
    together = quantize_rows(x, name).bytes
    assert torch.equal(together[-9:], quantize_rows(x[-9:], name).bytes)
    assert torch.equal(together[:1], quantize_rows(x[:1], name).bytes)


@pytest.mark.parametrize("name", PACK)
def test_experts_are_quantized_one_by_one(name: str) -> None:
    x, importance = rows(n_rows=6).view(2, 3, D), torch.rand(2, D, generator=torch.Generator().manual_seed(1))
    found = quantize_rows(x, name, importance)
    assert found.shape == (2, 3, D)
    for expert in range(2):
        assert torch.equal(found.bytes[expert], quantize_rows(x[expert], name, importance[expert]).bytes)
    shared = quantize_rows(x, name, importance[0])
    assert torch.equal(shared.bytes[1], quantize_rows(x[1], name, importance[0]).bytes)


@pytest.mark.parametrize("name", PACK)
def test_zeros_stay_zeros(name: str) -> None:
    assert unpack(quantize_rows(torch.zeros(2, D), name)).abs().max() == 0
    x = rows(n_rows=2)
    x[1, :256] = 0
    assert unpack(quantize_rows(x, name))[1, :256].abs().max() == 0


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("sign", [1, -1])
def test_one_number_far_from_the_others_is_kept(name: str, sign: int) -> None:
    x = rows(n_rows=1)
    x[0, 100] = 3.0 * sign
    found = unpack(quantize_rows(x, name))
    assert abs(found[0, 100] - 3 * sign) < 0.05
    assert found[0, 256:].isfinite().all()
    assert lost(x[:, 256:], found[:, 256:]) < 0.1


@pytest.mark.parametrize("name", PACK)
def test_all_numbers_alike(name: str) -> None:
    for value in (0.37, -0.37):
        assert (unpack(quantize_rows(torch.full((1, D), value), name)) / value - 1).abs().max() < (0.15 if name == "MXFP4" else 0.02)


@pytest.mark.parametrize("name", PACKED)
def test_small_and_large_numbers_are_as_near_as_others(name: str) -> None:
    """Down to where float16, of which the scales are, has few bits left; Q6_K's unit is the smallest, a number over 32 times 128."""
    x = rows()
    usual = lost(x, unpack(quantize_rows(x, name)))
    for scale, worse in ((1e-3, 1.5), (1e4, 1.02)):
        assert lost(x * scale, unpack(quantize_rows(x * scale, name))) < worse * usual


@pytest.mark.parametrize("name", PACK)
def test_what_is_no_number_is_named(name: str) -> None:
    x = rows(n_rows=3)
    for value, told in ((float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")):
        x[2, 77] = value
        with pytest.raises(BadCheckpoint, match=rf"blk.7.ffn_up.weight holds {told} in row 2, column 77, which {name} cannot say"):
            quantize_rows(x, name, name="blk.7.ffn_up.weight")
        with pytest.raises(BadCheckpoint, match=rf"blk.7.ffn_up_exps.weight, expert 1 holds {told} in row 2, column 77"):
            quantize_rows(torch.stack([rows(n_rows=3), x]), name, name="blk.7.ffn_up_exps.weight")


@pytest.mark.parametrize("name", [name for name in PACK if name not in ("F32", "BF16", "MXFP4")])
def test_what_no_scale_reaches_is_named(name: str) -> None:
    x = rows(n_rows=2)
    x[1, 3] = -1e9
    with pytest.raises(BadRequest, match=rf"attn_q.weight holds a number of 1e\+09, and the scales of {name} are float16.*--tensor-type blk.0.attn_q"):
        quantize_rows(x, name, name="blk.0.attn_q.weight")


@pytest.mark.parametrize("name", [name for name in PACKED if name != "MXFP4"])
def test_what_scales_just_reach_is_written_as_well_as_the_rest(name: str) -> None:
    """A part of the numbers at the limit, of one sign or of both, an offset to all: no scale and no minimum is infinite."""
    with pytest.raises(BadRequest) as refused:
        quantize_rows(torch.full((1, D), 1e30), name)
    reach = float(str(refused.value).split("reach ")[1].split(". ")[0])
    x = rows()
    for numbers in (x / x.abs().max(), x.sign() * (0.9 + x.abs()).clamp(max=1), 0.9 + 0.1 * x / x.abs().max(), -0.9 - 0.1 * x / x.abs().max()):
        small, large = (unpack(quantize_rows(numbers * scale, name)).double() / scale for scale in (1.0, 0.999 * reach))
        assert large.isfinite().all()
        assert lost(numbers, large) < 1.05 * lost(numbers, small) + 1e-9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), low=st.integers(-40, 3), spread=st.integers(0, 30), sparse=st.floats(0, 1), name=st.sampled_from(PACKED))
def test_any_finite_numbers_are_written_as_finite_ones_and_never_worse_than_nothing(seed: int, low: int, spread: int, sparse: float, name: str) -> None:
    """Of one size or of many, dense or sparse, with an importance of as many sizes."""
    of = np.random.default_rng(seed)
    x = torch.from_numpy(of.standard_normal((2, D)) * 10.0 ** of.uniform(low, min(low + spread, 3), (2, D)) * (of.random((2, D)) >= sparse)).float()
    importance = torch.from_numpy(10.0 ** of.uniform(-30, 5, D)).float() if seed % 2 else None
    found = unpack(quantize_rows(x, name, importance)).double()
    assert found.isfinite().all()
    wide = x.double()
    step = 32 * 2.0 ** -25  # scales and minima are float16: what lies below half its finest step is rounded away, or up, 31 codes and a minimum at a time
    assert ((found - wide) ** 2).sum() <= 1.2 * (wide ** 2).sum() + x.numel() * step ** 2 or importance is not None


@pytest.mark.parametrize("name", ["F32", "BF16", "MXFP4"])
def test_scales_that_are_powers_of_two_reach_everywhere(name: str) -> None:
    x = rows() * 1e30
    assert lost(x.double(), unpack(quantize_rows(x, name)).double()) < 0.02


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(BadRequest, match=r"blk.0.ffn_down.weight has rows of 172 numbers, and Q4_0 packs 32 together. Leave it in F16"):
        quantize_rows(torch.zeros(2, 172), "Q4_0", name="blk.0.ffn_down.weight")


def test_a_format_that_is_not_written_is_refused() -> None:
    with pytest.raises(BadRequest, match=r"the tensor: weights are not written as IQ1_S \(written: F32, F16, BF16, Q4_0, "):
        quantize_rows(torch.zeros(2, 256), "IQ1_S")


@pytest.mark.parametrize("importance", [torch.ones(64), -torch.ones(D), torch.full((D,), float("nan")), torch.full((D,), float("inf")), torch.ones(3, D)])
def test_importance_of_another_model_is_refused(importance: Tensor) -> None:
    with pytest.raises(BadCheckpoint, match=r"blk.0.attn_q.weight: its importance has shape .* and 512 finite numbers were expected, none negative"):
        quantize_rows(torch.zeros(2, D), "Q4_0", importance, name="blk.0.attn_q.weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype_are_read(dtype: torch.dtype) -> None:
    x = rows(n_rows=2).to(dtype)
    assert torch.equal(quantize_rows(x, "Q4_K").bytes, quantize_rows(x.float(), "Q4_K").bytes)


@pytest.mark.parametrize("name", PACK)
def test_what_is_packed_is_packed_again_with_little_loss(name: str) -> None:
    """Numbers that a format can say are found again nearly all."""
    y = unpack(quantize_rows(rows(), name))
    assert lost(y, unpack(quantize_rows(y, name))) < 0.2 * lost(rows(), y) + 1e-12


@pytest.mark.parametrize("name", PACK)
def test_bytes_are_as_many_as_the_format_says(name: str) -> None:
    found = quantize_rows(rows(), name)
    assert found.format == name
    assert found.bytes.shape == (F, D // BY_NAME[name].n_numbers * BY_NAME[name].n_bytes)
    assert found.shape == (F, D)
