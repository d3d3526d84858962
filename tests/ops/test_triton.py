"""Triton's kernels against the numbers that packed weights mean: on a GPU where there is one, else number by number in Triton's interpreter.

What the interpreter cannot show is whether the kernels compile for a GPU: the last test compiles them for one, which needs none.
"""
from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pellucid.model.cache import Cache
from pellucid.model.decoder import Decoder
from pellucid.model.parts import hold
from pellucid.ops import packed
from pellucid.ops.choose import choose
from pellucid.ops.interface import Ops
from pellucid.ops.quantize.rows import quantize_rows
from pellucid.ops.reference import Reference
from pellucid.ops.unpack import UNPACK, unpack
from pellucid.spec import Attention, DecoderSpec, FeedForward, Layer, Norm, Rope
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.group_rows import Affine, GroupRows, Reordered, pack
from pellucid.weights.packed_rows import PackedRows, PackedWeight
from tests.ops.test_groups import BOOK, numbers
from tests.ops.test_packed import weights
from tests.test_ops import DTYPES, near, random

pytestmark = pytest.mark.triton
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_KERNEL = {"F32", "F16", "BF16", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M", "TQ1_0"}
WITH_KERNEL = [name for name in UNPACK if name not in NO_KERNEL]
TOKENS = (1, 2, 17)  # the kernel for one row; that for several, in a tile that is not full, and in two


@pytest.fixture
def ops() -> Ops:
    return choose("triton", device=DEVICE)


@pytest.fixture
def unpacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not multiplied by a kernel fails."""
    def fail(rows: PackedWeight) -> Tensor:
        raise AssertionError(f"{rows} was unpacked")

    monkeypatch.setattr(packed, "unpack", fail)


def product(ops: Ops, x_TD: Tensor, weight: PackedWeight, bias_F: Tensor | None = None) -> Tensor:
    return ops.matmul(x_TD.to(DEVICE), weight.to(DEVICE, weight.dtype), None if bias_F is None else bias_F.to(DEVICE)).cpu()


@pytest.mark.usefixtures("unpacks_nothing")
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_every_format_means_the_same_numbers(ops: Ops, name: str) -> None:
    for n_rows, dtype in zip((70, 9, 9), DTYPES, strict=True):  # of two tiles, of a part of one
        weight = weights(name, n_rows, dtype=dtype)
        dense, bias = unpack(weight), random(n_rows, dtype=dtype, seed=2)
        for T in TOKENS:
            x = random(T, dense.shape[1], dtype=dtype)
            near(product(ops, x, weight), x.float() @ dense.T, dtype, 1)
        near(product(ops, x, weight, bias), x.float() @ dense.T + bias.float(), dtype, 1)


@pytest.mark.usefixtures("unpacks_nothing")
@pytest.mark.parametrize("D", [256, 768, 1536])  # one part, parts of which the last is shorter, and whole ones
def test_columns_are_shared_out(ops: Ops, D: int) -> None:
    for name in ("Q4_0", "Q6_K"):
        whole = weights(name, 9 * D // 512 + 1)
        n_bytes = D // BY_NAME[name].n_numbers * BY_NAME[name].n_bytes
        weight = replace(whole, bytes=whole.bytes.flatten()[: 9 * n_bytes].view(9, n_bytes))
        for T in TOKENS:
            x = random(T, D)
            near(product(ops, x, weight), x @ unpack(weight).T, torch.float32, 1)


@pytest.mark.usefixtures("unpacks_nothing")
@pytest.mark.parametrize("kind", ["int2", "int4", "int8", "signed", "even", "book", "e4m3", "e5m2"])
@pytest.mark.parametrize(("D", "group"), [(96, 32), (176, 64), (80, 80), (128, 1000)])  # ragged columns, ragged groups, rows of one group
def test_groups_mean_the_same_numbers(ops: Ops, kind: str, D: int, group: int) -> None:
    F, n_groups = 70, -(-D // group)
    scales = torch.rand(F, n_groups, generator=torch.Generator().manual_seed(2)) / 8 + 0.01
    how = {"group": group, "n_columns": D}
    if kind in ("int2", "int4", "int8"):
        width = int(kind[3:])
        weight = GroupRows(codes=pack(numbers(0, 1 << width, F, D), width), scales=scales.bfloat16(), width=width,
                           zeros=numbers(0, 1 << width, F, n_groups, seed=1), **how)
    elif kind in ("even", "book"):
        codes = pack(numbers(0, 16, F, D), 4)
        weight = GroupRows(codes=codes, scales=scales.half(), width=4, **how, **({"zeros": 8} if kind == "even" else {"book": BOOK}))
    elif kind == "signed":
        weight = GroupRows(codes=numbers(0, 256, F, D), scales=scales, byte=torch.int8, zeros=3, **how)
    else:
        byte = torch.float8_e4m3fn if kind == "e4m3" else torch.float8_e5m2
        weight = GroupRows(codes=random(F, D, seed=4).mul(4).to(byte).view(torch.uint8), scales=scales, byte=byte, **how)
    dense = unpack(weight)
    for T, dtype in itertools.product(TOKENS, DTYPES):
        x = random(T, D, dtype=dtype)
        near(product(ops, x, replace(weight, dtype=dtype)), x.float() @ dense.T, dtype, 1)


@pytest.mark.usefixtures("unpacks_nothing")
def test_what_lies_around_the_rows_is_done_around_the_kernel(ops: Ops) -> None:
    rows, order = weights("Q4_0"), torch.randperm(512, generator=torch.Generator().manual_seed(3))
    weight = Reordered(Affine(rows, 128, gain=random(9).abs(), shift=random(9, 4, seed=5)), order)
    for T in TOKENS:
        x = random(T, 512)
        near(product(ops, x, weight), x @ unpack(weight).T, torch.float32, 2)


def test_a_scale_of_two_to_the_minus_128_is_one(ops: Ops) -> None:
    """The least exponents of MXFP4 are subnormal float32, and the largest is what float32 still holds."""
    for exponent in (0, 1, 2, 127, 250):
        weight = PackedRows(torch.tensor([[exponent] + [0x21] * 16], dtype=torch.uint8), "MXFP4")
        x = torch.ones(1, 32)
        assert product(ops, x, weight).item() == pytest.approx(16 * 3 * 2.0 ** (exponent - 128), rel=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
def test_a_row_that_is_not_finite_leaves_its_neighbors_alone(ops: Ops) -> None:
    weight = weights("Q4_K", 9)
    weight.bytes[8, :2] = torch.tensor([0, 0x7C], dtype=torch.uint8)  # the scale of the last row's first block: infinity
    for T in TOKENS:
        x = random(T, 512)
        found = product(ops, x, weight)
        assert not found[:, 8].isfinite().any()
        near(found[:, :8], x @ unpack(weight)[:8].T, torch.float32, 1)


def test_the_rest_goes_the_way_of_the_reference(ops: Ops) -> None:
    for name in sorted(NO_KERNEL):
        weight, x = weights(name), random(3, 512)
        assert torch.equal(product(ops, x, weight), Reference().matmul(x.to(DEVICE), weight.to(DEVICE, weight.dtype)).cpu())
    weight, x = weights("Q4_K"), random(3, 512)
    assert (product(ops, x.double(), weight) - x.double() @ unpack(weight).double().T).abs().max() < 1e-11
    x.requires_grad_()
    product(ops, x, weight).sum().backward()
    near(x.grad, unpack(weight).sum(0).expand(3, -1), torch.float32, 1)
    assert product(ops, random(0, 512), weight).shape == (0, 9)


def test_rounded_activations_are_what_the_reference_makes_of_them() -> None:
    weight, x = weights("Q4_K"), random(3, 512)
    near(product(choose("triton", "int8", DEVICE), x, weight), Reference("int8").matmul(x, weight), torch.float32, 1)


def test_another_width_is_refused(ops: Ops) -> None:
    with pytest.raises(ValueError, match="rows of 256 numbers times a matrix of 9 x 512"):
        product(ops, random(2, 256), weights("Q4_0"))


@pytest.mark.usefixtures("unpacks_nothing")
def test_a_decoder_computes_with_it(ops: Ops) -> None:
    """Every matrix packed, the table looked up included, a prompt and a token after it: the logits of the same numbers, dense."""
    mixer = Attention(n_heads=4, n_kv_heads=2, d_head=24, scale=0.2, rope=Rope(theta=1e4, d_rotary=24))
    spec = DecoderSpec(family="llama", n_vocab=101, n_ctx=64, d_model=96, layers=(Layer(mixer=mixer, mlp=FeedForward(d_ff=160)),) * 2, norm=Norm(eps=1e-5))
    found = {}
    for backend in (ops, Reference()):
        decoder, noise = Decoder(spec, backend), torch.Generator().manual_seed(1)
        for name, parameter in list(decoder.named_parameters()):
            parameter.data = torch.randn(parameter.shape, generator=noise) * 0.2
            if parameter.ndim == 2:
                rows = quantize_rows(parameter.data, "Q5_0", name=name)
                hold(decoder.get_submodule(name.removesuffix(".weight")), "weight", rows if backend is ops else unpack(rows))
        decoder = decoder.requires_grad_(False).eval().to(DEVICE)
        cache, tokens_T = Cache(spec), torch.arange(7, device=DEVICE)
        found[backend] = torch.cat([decoder.unembed(decoder(part_T, cache=cache)) for part_T in (tokens_T[:6], tokens_T[6:])]).cpu()
    near(*found.values(), torch.float32, 4)


COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pellucid.ops.triton import kernels
from pellucid.weights.packed_rows import PackedRows

tensors, _, how, size = kernels._facts(PackedRows(torch.zeros(8, 144, dtype=torch.uint8), "Q4_K"), 256)
for kernel, also in ((kernels.vector, {"ROWS": 8, "GROUPS": 16}), (kernels.tiles, {"ROWS": 64, "TOKENS": 16, "WIDE": False}),
                     (kernels.tiles, {"ROWS": 64, "TOKENS": 32, "WIDE": True})):
    fixed = {name: value for name, value in {**how, **also}.items() if name in kernel.arg_names}
    pointers = {"x": "*bf16", "w": "*u8", "scales": "*u8", "zeros": "*u8", "book": "*u8", "out": "*fp32"}
    signature = {name: pointers.get(name, "constexpr" if name in fixed else "i32") for name in kernel.arg_names}
    made = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 80, 32), options=kernels.LAUNCH)
    print(kernel.__name__, len(made.asm["cubin"]) > 0, "mma.sync" in made.asm["ptx"])
"""


def test_the_kernels_compile_for_a_gpu(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For one of Ampere's, by Triton's own assembler. Products of several rows are made on the units for matrices."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-W", "error", "-c", COMPILE], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["vector True False", "tiles True True", "tiles True True"], done.stderr[-2000:]
