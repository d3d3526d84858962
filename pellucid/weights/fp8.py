"""FP8 weights with a scale for each block, each row or the whole matrix, however activations are rounded. No torch above functions.

    quant_method    who writes it                       X.weight F8_E4M3 (rows, columns), and
    fp8             DeepSeek, Qwen, MiniMax             X.weight_scale_inv, a number for each block of weight_block_size, 128 x 128
    fp8             Mistral; AutoFP8                    X.weight_scale_inv or X.weight_scale, one number
    fbgemm_fp8      Meta's Llama 3.1 405B               X.weight_scale (rows, 1)

number = weight * scale: the "inverse" is that of what the weight was multiplied with.
https://github.com/deepseek-ai/DeepSeek-V3/blob/9b4e9788e4a3a731f7567338ed15d3ec549ce03b/README_WEIGHTS.md; finegrained_fp8.py and fbgemm_fp8.py of
transformers 5.23, src/transformers/integrations
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pellucid.errors import BadConfig
from pellucid.weights.quantization import FLOATS, Packed, Peek, Quantization, Settings, Stored, beside, check, per

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

_SCALES = (*FLOATS, "F8_E8M0")  # the last: plain powers of two, which scale_fmt "ue8m0" means


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How every FP8 matrix is packed; None where there are none. Raises what `check` raises."""
    names = [name for name, t in stored.items() if t.dtype == "F8_E4M3" and len(t.shape) == 2]
    if not names:
        return None
    block = settings("weight_block_size", default=None)
    if block is not None and (not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block)):
        raise BadConfig(f"{settings.where}: weight_block_size is {block!r:.60}, and two sizes were expected, as [128, 128]")
    settings.choice("quant_method", among=("fp8", "fbgemm_fp8"))
    scheme = settings.choice("activation_scheme", among=("dynamic", "static"), default="dynamic")
    settings.choice("fmt", among=("e4m3", "float8_e4m3fn"), default="e4m3")
    settings.choice("expert_dtype", among=("fp8",), default="fp8")
    settings.inert("the scales' own dtype says it", "scale_fmt")
    settings.inert("which modules are packed, their tensors say", "modules_to_not_convert modules_to_convert ignored_layers ignore")
    settings.inert("chooses how another program computes", "dequantize activation_scale_ub kv_cache_scheme")
    matrices = {name: _matrix(name, block, stored) for name in names}
    how = f"in blocks of {block[0]} x {block[1]}" if block else per(-1) if settings.raw["quant_method"] == "fbgemm_fp8" else "a scale for each matrix"
    rounded = "scales found as they come" if scheme == "dynamic" else "one scale for all"
    return Quantization(method="fp8", shown=f"fp8 {how}", matrices=matrices, facts={"block": block, "activation_scheme": scheme}, left_out=beside(stored),
                        notes=(f"its authors run it with activations in 8-bit floats, {rounded}; here --activations decides",))


def _matrix(name: str, block: list[int] | None, stored: Stored) -> Packed:
    rows, columns = stored[name].shape
    scale = next((each for each in (f"{name}_scale_inv", f"{name}_scale") if each in stored), f"{name}_scale_inv")
    if block is not None:
        check(stored, scale, name, ((-(-rows // block[0]), -(-columns // block[1])),), _SCALES)
        of = (block[0], block[1])
    else:
        check(stored, scale, name, ((), (1,), (rows, 1)), _SCALES)
        of = (1 if stored[scale].shape == (rows, 1) else rows, columns)
    return Packed(format="fp8", parts={"numbers": name, "scales": scale}, shape=(rows, columns), build=partial(_build, of))


def _build(block: tuple[int, int], parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import GroupRows, by_blocks
    codes = parts["numbers"].view(torch.uint8)
    scales = by_blocks(parts["scales"].float(), codes.shape[0], block[0])
    return GroupRows(codes=codes, scales=scales, group=min(block[1], codes.shape[1]), n_columns=codes.shape[1], byte=torch.float8_e4m3fn)
