"""What training computes in kernels of its own, against the reference under autograd: results and gradients."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pellucid.ops import training
from pellucid.ops.fused import Fused
from pellucid.ops.interface import Ops
from pellucid.ops.panels import native
from pellucid.ops.reference import Reference
from pellucid.ops.training import Training
from pellucid.ops.unpack import unpack
from tests.ops.test_groups import rows
from tests.ops.test_stored import blocks
from tests.train.tiny import tiny_decoder

pytestmark = pytest.mark.native
REFERENCE = Reference()
VARIANTS = [] if native is None else native.variants()
T = 37
# Lengths of rows, query heads, key heads, channels of keys and of values, window: rows of one token, and of more than a block; a group of queries a key;
# widths that fill no tile; windows within a block, and past it.
ATTEND = [((100,), 4, 2, 64, 64, None), ((37, 1, 300, 65), 6, 3, 40, 24, None), ((200, 130), 4, 1, 96, 128, 50), ((700,), 2, 2, 32, 32, 10),
          ((1,), 1, 1, 16, 16, None), ((600, 20), 2, 2, 64, 64, 300), ((64, 256), 3, 1, 8, 256, 64)]


@pytest.fixture(params=VARIANTS)
def ops(request: pytest.FixtureRequest) -> Training:
    return Training(variant=request.param)


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def agree(ops: Ops, compute: Callable[..., Tensor], inputs: list[Tensor], roundings: float) -> None:
    """Result and gradients, each within so many roundings of its own size in the mean square; the reference has the same numbers in float32."""
    found, expected = [], []
    for backend, out, dtype in ((ops, found, inputs[0].dtype), (REFERENCE, expected, torch.float32)):
        own = [x.to(dtype).detach().requires_grad_() for x in inputs]
        y = compute(backend, *own)
        y.backward(drawn(tuple(y.shape), dtype=inputs[0].dtype, seed=1)[0].to(dtype))
        out += [y.detach(), *(x.grad for x in own)]
    eps = torch.finfo(inputs[0].dtype).eps
    for i, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert mine.dtype == inputs[0].dtype
        assert float((mine.float() - other).norm()) <= roundings * eps * float(other.norm()), f"{'result' if i == 0 else f'gradient of input {i}'}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
class TestAgainstTheReference:
    @pytest.mark.parametrize("offset", [0.0, 1.0])
    @pytest.mark.parametrize("D", [3, 75, 256])
    def test_rms_norms(self, ops: Training, dtype: torch.dtype, offset: float, D: int) -> None:
        how: dict[str, Any] = {"kind": "rms", "eps": 1e-3, "offset": offset}
        agree(ops, lambda o, x, w: o.normalize(x, w, None, **how), drawn((T, D), (D,), dtype=dtype), 2)
        agree(ops, lambda o, x: o.normalize(x, None, None, **how), drawn((T, 3, D), dtype=dtype), 2)

    @pytest.mark.parametrize("R", [2, 24, 50])
    def test_rotation(self, ops: Training, dtype: torch.dtype, R: int) -> None:
        [x, angle] = drawn((T, 3, 50), (T, R // 2), dtype=torch.float32)
        half = torch.cat([angle, angle], -1).cos(), torch.cat([-angle, angle], -1).sin()
        agree(ops, lambda o, x: o.rotate(x, *half, pairing="half"), [x.to(dtype)], 1)
        near = torch.stack([angle, angle], -1).flatten(-2).cos(), torch.stack([-angle, angle], -1).flatten(-2).sin()
        agree(ops, lambda o, x: o.rotate(x, *near, pairing="adjacent"), [x.to(dtype)], 1)

    def test_gates(self, ops: Training, dtype: torch.dtype) -> None:
        agree(ops, lambda o, gate, up: o.gated(gate, up, "silu"), drawn((T, 75), (T, 75), dtype=dtype), 2)
        agree(ops, lambda o, gate, up: o.gated(gate, up, "gelu_tanh"), drawn((T, 75), (T, 75), dtype=dtype), 4)

    @pytest.mark.parametrize("V", [5, 75, 1000])
    def test_surprise(self, ops: Training, dtype: torch.dtype, V: int) -> None:
        [logits] = drawn((T, V), dtype=dtype)
        target = torch.arange(T) * 7 % V
        wide = logits.float().requires_grad_()
        expected = torch.nn.functional.cross_entropy(wide, target, reduction="none")
        expected.sum().backward()
        for backend in (ops, REFERENCE):
            surprise, gradient = backend.surprise(logits.clone(), target)
            torch.testing.assert_close(surprise, expected.detach(), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(gradient.float(), wide.grad, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("lengths", "H", "K", "C", "V", "window"), ATTEND)
def test_attention_and_its_gradients_are_the_references(lengths, H, K, C, V, window, dtype) -> None:
    n, how = sum(lengths), {"q_lengths": lengths, "k_lengths": lengths, "scale": C**-0.5, "window": window, "softcap": None}
    agree(Training(), lambda o, q, k, v: o.attend(q, k, v, **how), drawn((n, H, C), (n, K, C), (n, K, V), dtype=dtype), 1 if dtype == torch.bfloat16 else 16)


def test_attention_with_large_scores_is_as_exact_as_torchs() -> None:
    """Where one key has nearly all of a query's probability, gradients are what rounding leaves of two equal numbers, in any flash attention."""
    how = {"q_lengths": (90,), "k_lengths": (90,), "scale": 1.0, "window": None, "softcap": None}
    found = {}
    for ops, dtype in ((Training(), torch.bfloat16), (Fused(), torch.bfloat16), (REFERENCE, torch.float32)):
        q, k, v = (x.to(dtype).requires_grad_() for x in drawn((90, 2, 32), (90, 2, 32), (90, 2, 32), dtype=torch.bfloat16))
        out = ops.attend(q * 8, k * 8, v, **how)
        out.backward(drawn(tuple(out.shape), dtype=torch.bfloat16, seed=1)[0].to(dtype))
        found[ops.name] = [out.detach().float(), *(x.grad.float() for x in (q, k, v))]
    for mine, theirs, exact in zip(*found.values(), strict=True):
        assert float((mine - exact).norm()) <= 1.5 * float((theirs - exact).norm())


def test_what_is_no_number_does_not_go_unnoticed(ops: Training) -> None:
    x = torch.ones(3, 20)
    x[1, 7] = torch.nan
    assert ops.normalize(x, None, None, kind="rms", eps=1e-5, offset=0.0)[1].isnan().all()
    assert ops.surprise(x.clone(), torch.zeros(3, dtype=torch.int64))[0].isnan().tolist() == [False, True, False]


def test_a_query_that_is_no_number_has_no_answer() -> None:
    """In tiles. Torch's kernel, where there are none, answers it with zeros."""
    q = torch.ones(3, 1, 32, dtype=torch.bfloat16)
    q[1] = torch.nan
    seen = Training().attend(q, torch.ones_like(q), torch.ones_like(q), q_lengths=(3,), k_lengths=(3,), scale=1.0, window=None, softcap=None)
    assert seen.isnan().flatten(1).any(1).tolist() == [False, Training().tiles, False]


def test_targets_past_the_vocabulary_are_refused(ops: Training) -> None:
    for target in (torch.tensor([0, 5]), torch.tensor([-100, 1]), torch.tensor([1])):
        with pytest.raises(ValueError, match="targets are 2 whole numbers below 5"):
            ops.surprise(torch.zeros(2, 5), target)


@pytest.mark.parametrize("alone", [False, True], ids=["torch's threads", "threads of its own"])
def test_gradients_are_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    if alone:
        monkeypatch.setattr(training, "torch_parallel", lambda: 0)
    else:
        assert training.torch_parallel(), "torch works with one libgomp here"
    found, before = [], torch.get_num_threads()
    for n in (1, 2, 3):
        monkeypatch.setattr(training, "n_threads", lambda n=n: n)
        decoder = tiny_decoder(Training(), trained=True).bfloat16()
        decoder(torch.arange(60) % 23).float().square().sum().backward()
        found.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    assert torch.get_num_threads() == before
    assert len(found[0]) == len(found[1]) == len(found[2]) > 10
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_a_whole_decoders_gradients_are_the_references() -> None:
    tokens = torch.arange(60) % 23
    gradients = []
    for ops in (Training(), REFERENCE):
        decoder = tiny_decoder(ops, trained=True)
        decoder(tokens).square().sum().backward()
        gradients.append({name: p.grad for name, p in decoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_an_adapter_adds_and_its_gradients_are_the_references(dtype: torch.dtype) -> None:
    def compute(ops: Ops, x: Tensor, w: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return ops.low_rank(ops.matmul(x, w), x, a, b, 0.5)

    agree(Training(), compute, drawn((T, 24), (40, 24), (3, 24), (40, 3), dtype=dtype), 2)


def test_adapters_in_float32_beside_a_model_in_bfloat16_are_trained_in_float32() -> None:
    [x, w, a, b] = drawn((T, 24), (40, 24), (3, 24), (40, 3), dtype=torch.float32)
    a.requires_grad_(), b.requires_grad_()
    out = Training().low_rank(x.bfloat16() @ w.bfloat16().T, x.bfloat16(), a, b, 0.5)
    out.sum().backward()
    assert (out.dtype, a.grad.dtype, b.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", ["Q4_K", "Q6_K", "Q8_0", "IQ3_S", "book", "int8"])
def test_products_with_packed_weights_are_those_with_their_numbers(ops: Training, format: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = rows(format) if format in ("book", "int8") else blocks(format, 40, 512, monkeypatch)
    numbers = training.unpacked(weight, dtype, ops.variant)
    assert torch.equal(numbers, unpack(weight).to(dtype))
    assert len(numbers.unique()) > 2
    agree(ops, lambda o, x, bias: o.matmul(x, weight, bias), drawn((T, weight.shape[1]), (weight.shape[0],), dtype=dtype), 16)
    monkeypatch.setattr(training, "BLOCK", 7 * weight.shape[1] + 1)
    seen: list[int] = []
    monkeypatch.setattr(training, "unpacked", lambda part, *how: seen.append(part.shape[0]) or unpack(part).to(how[0]))
    agree(ops, lambda o, x, bias: o.matmul(x, weight, bias), drawn((T, weight.shape[1]), (weight.shape[0],), dtype=dtype), 16)
    F = weight.shape[0]
    assert seen == [*[7] * (F // 7), F % 7] * 2, "so many rows at once, forward and back"
