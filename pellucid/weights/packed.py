"""Weights that the files hold packed, several tensors for one: found by their headers (no torch here), unpacked when they are read.

    fp8     X.weight (rows, columns) F8_E4M3 and X.weight_scale_inv, one number for each block of 128 x 128, or as weight_block_size has it
    mxfp4   X_blocks (experts, rows, groups, 16) U8 and X_scales (experts, rows, groups) U8: 32 numbers of 4 bits share a power of two

quantization_config says which it is; nothing is guessed from the tensors. Each number is computed in float32 and rounded once.
https://github.com/deepseek-ai/DeepSeek-V3/blob/9b4e9788e4a3a731f7567338ed15d3ec549ce03b/README_WEIGHTS.md
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pellucid.errors import MisshapenTensor, MissingTensors, UnsupportedModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GROUP = 32  # numbers of one shared scale
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)  # what four bits mean
_SCALES = ("F32", "BF16", "F8_E8M0")  # DeepSeek's, Qwen's, and the plain powers of two that fmt "ue8m0" means


class Described(Protocol):
    """What a header says of a tensor."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Packed:
    """One tensor in two of the files: `numbers` and their `scales`, by their names there; `shape` is that of what they make."""

    format: Literal["fp8", "mxfp4"]
    numbers: str
    scales: str
    shape: tuple[int, ...]
    block: tuple[int, int] = (1, GROUP)

    @property
    def shown(self) -> str:
        return f"fp8 in blocks of {self.block[0]} x {self.block[1]}" if self.format == "fp8" else "mxfp4"

    def unpack(self, numbers: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """The plain tensor. mxfp4 comes out (experts, columns, rows), as the same model's plain files have it."""
        return _fp8(numbers, scales, self.block, dtype) if self.format == "fp8" else _mxfp4(numbers, scales, dtype)


def find_packed(config: Mapping[str, Any], stored: Mapping[str, Described]) -> dict[str, Packed]:
    """Name of what is unpacked -> how, for every packed tensor that this version reads; empty where config.json names no such format.

    Raises MissingTensors or MisshapenTensor where numbers and scales do not go together, UnsupportedModel for scales of another kind.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, dict):
        return {}
    block, method = quantization.get("weight_block_size"), quantization.get("quant_method")
    if method == "fp8" and isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        numbers = {name: (name, f"{name}_scale_inv") for name, t in stored.items() if t.dtype == "F8_E4M3" and len(t.shape) == 2}
        return {name: _fp8_pair(*pair, (block[0], block[1]), stored) for name, pair in numbers.items()}
    if method == "mxfp4":
        plain = [name.removesuffix("_blocks") for name, t in stored.items() if name.endswith("_blocks") and t.dtype == "U8"]
        return {name: _mxfp4_pair(f"{name}_blocks", f"{name}_scales", stored) for name in plain}
    return {}


def _fp8_pair(numbers: str, scales: str, block: tuple[int, int], stored: Mapping[str, Described]) -> Packed:
    rows, columns = stored[numbers].shape
    _agree(numbers, scales, stored, (-(-rows // block[0]), -(-columns // block[1])), _SCALES)
    return Packed("fp8", numbers, scales, (rows, columns), block)


def _mxfp4_pair(numbers: str, scales: str, stored: Mapping[str, Described]) -> Packed:
    shape = stored[numbers].shape
    if len(shape) != 4 or shape[-1] != GROUP // 2:
        raise MisshapenTensor(f"{numbers} has shape {shape}, and (experts, rows, groups, {GROUP // 2}) was expected: {GROUP} numbers of 4 bits a group")
    _agree(numbers, scales, stored, shape[:3], ("U8",))
    return Packed("mxfp4", numbers, scales, (shape[0], shape[2] * GROUP, shape[1]))


def _agree(numbers: str, scales: str, stored: Mapping[str, Described], shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if scales not in stored:
        raise MissingTensors(f"{numbers} is packed, and its scales {scales} are not there. Is a shard missing?")
    if stored[scales].shape != shape:
        raise MisshapenTensor(f"{scales} has shape {stored[scales].shape}, and {numbers} of {stored[numbers].shape} makes it {shape}")
    if stored[scales].dtype not in dtypes:
        raise UnsupportedModel(f"{scales} is {stored[scales].dtype}, and scales of {numbers} are read as {' or '.join(dtypes)}")


def _fp8(numbers_FD: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    import torch
    out_FD = torch.empty(numbers_FD.shape, dtype=dtype)
    for i, scale in enumerate(scales.float()):  # one row of blocks at a time, so that no second matrix is held
        rows = slice(i * block[0], (i + 1) * block[0])
        out_FD[rows] = numbers_FD[rows].float() * scale.repeat_interleave(block[1])[: numbers_FD.shape[1]]
    return out_FD


def _mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    import torch
    n_experts, n_rows, n_groups, _ = blocks.shape
    # One byte is two numbers, the low four bits first.
    pairs = torch.tensor([[E2M1[byte & 15], E2M1[byte >> 4]] for byte in range(256)])
    out = torch.empty(n_experts, n_rows, n_groups, GROUP, dtype=dtype)
    for expert, bytes_of, exponents in zip(out, blocks, scales, strict=True):  # one at a time: indices are four times the bytes
        numbers = torch.nn.functional.embedding(bytes_of.int(), pairs).flatten(-2)
        expert.copy_(torch.ldexp(numbers, exponents.int()[..., None] - 127))
    return out.flatten(2).transpose(1, 2)
