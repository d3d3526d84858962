"""MXFP4 as gpt-oss has it: 32 numbers of 4 bits share a power of two, all experts in one tensor. No torch above functions.

    X_blocks U8 (experts, rows, groups, 16)    two numbers a byte, the low four bits first        X_scales U8 (experts, rows, groups)    exponents + 127

They are the numbers of GGUF's MXFP4, whose blocks begin with their exponent and have the first sixteen numbers in the low bits.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pellucid.errors import MisshapenTensor
from pellucid.weights.quantization import Packed, Peek, Quantization, Settings, Stored, check

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

GROUP = 32  # numbers of one exponent


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How the tensors named _blocks are packed; None where there are none. Raises what `check` raises."""
    names = [name.removesuffix("_blocks") for name, t in stored.items() if name.endswith("_blocks") and t.dtype == "U8"]
    if not names:
        return None
    settings.choice("quant_method", among=("mxfp4",), default="mxfp4")
    settings.inert("which modules are packed, their tensors say", "modules_to_not_convert")
    settings.inert("chooses how another program computes", "dequantize")
    return Quantization(method="mxfp4", shown="mxfp4, a power of two for 32 columns", matrices={name: _stack(name, stored) for name in names},
                        facts={"group_size": GROUP})


def _stack(name: str, stored: Stored) -> Packed:
    blocks, shape = f"{name}_blocks", stored[f"{name}_blocks"].shape
    if len(shape) != 4 or shape[-1] != GROUP // 2:
        raise MisshapenTensor(f"{blocks} has shape {shape}, and (experts, rows, groups, {GROUP // 2}) was expected: {GROUP} numbers of 4 bits a group")
    check(stored, f"{name}_scales", blocks, (shape[:3],), ("U8",))
    return Packed(format="mxfp4", parts={"codes": blocks, "exponents": f"{name}_scales"}, shape=(shape[0], shape[1], shape[2] * GROUP), build=_build)


def _build(parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import halves
    from pellucid.weights.packed_rows import PackedRows
    codes, exponents = parts["codes"], parts["exponents"]
    out = torch.empty(*codes.shape[:3], 1 + GROUP // 2, dtype=torch.uint8)
    out[..., 0] = exponents
    for expert, numbers in zip(out, codes, strict=True):  # one at a time: steps between are as large as what they make
        expert[..., 1:] = halves(numbers.flatten(1))
    return PackedRows(out.flatten(2), "MXFP4")
