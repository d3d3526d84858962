"""AWQ as AutoAWQ writes it: whole numbers of 4 bits with a scale and a zero for each group of columns, in two layouts. No torch above functions.

    version     X.qweight                    X.qzeros                          X.scales
    gemm        I32 (columns, rows / 8)      I32 (groups, rows / 8)            F16 (groups, rows)            of eight rows the order is 0 2 4 6 1 3 5 7
    gemv        I32 (rows, columns / 8)      I32 (rows, width)                 F16 (rows, 8 * width)         in order; filled up with groups that are none

https://github.com/casper-hansen/AutoAWQ/tree/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/modules/linear: gemm.py, gemv.py. number = scale * (code - zero).
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pellucid.errors import MisshapenTensor
from pellucid.weights.quantization import FLOATS, Packed, Peek, Quantization, Settings, Stored, check, grouped, per

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

EIGHT = 8  # codes in a word
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word of gemm the codes of eight rows lie
_STEP = 64  # words of a row at a time, so that a matrix is never held a byte a number


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How the matrices named .qweight are packed; None where there are none. Raises what `check` raises."""
    modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    if not modules:
        return None
    settings.count("bits", "w_bit", among=(4,))
    group = settings.count("group_size", "q_group_size")
    version = settings.choice("version", "checkpoint_format", "format", among=("gemm", "gemv"), default="gemm")
    settings.expect("without zeros nothing says where the codes begin", zero_point=True)
    settings.choice("method", "quant_method", among=("awq",), default="awq")
    settings.expect(pack_dtype="int32", desc_act=False, rotation=None)
    settings.inert("which modules are packed, their tensors say", "modules_to_not_convert lm_head")
    settings.inert("chooses a kernel of another program", "backend do_fuse modules_to_fuse fuse_max_seq_len exllama_config")
    settings.inert("how the codes were found", "meta sym damp_percent true_sequential static_groups dataset tokenizer model_name_or_path "
                                               "model_file_base_name quantizer")
    read_one = _gemm if version == "gemm" else _gemv
    return Quantization(method="awq", shown=f"awq: int4, {per(group)}", matrices={f"{module}.weight": read_one(module, group, stored, settings.where)
                                                                                  for module in modules},
                        facts={"bits": 4, "group_size": group, "version": version})


def _gemm(module: str, group: int, stored: Stored, where: str) -> Packed:
    columns, rows = _pair(f"{module}.qweight", stored)
    group = grouped(group, columns, f"{module}.qweight", where)
    check(stored, f"{module}.qzeros", f"{module}.qweight", ((columns // group, rows),), ("I32",))
    check(stored, f"{module}.scales", f"{module}.qweight", ((columns // group, rows * EIGHT),), FLOATS)
    return _packed(module, (rows * EIGHT, columns), partial(_build_gemm, group))


def _gemv(module: str, group: int, stored: Stored, where: str) -> Packed:
    rows, words = _pair(f"{module}.qweight", stored)
    columns = words * EIGHT
    group = grouped(group, columns, f"{module}.qweight", where)
    width = _width(columns // group, group)
    check(stored, f"{module}.qzeros", f"{module}.qweight", ((rows, width),), ("I32",))
    check(stored, f"{module}.scales", f"{module}.qweight", ((rows, width * EIGHT),), FLOATS)
    return _packed(module, (rows, columns), partial(_build_gemv, group))


def _width(n_groups: int, group: int) -> int:
    """Words of zeros in a row: calculate_zeros_width of gemv.py."""
    several = EIGHT * (1 if group >= 128 else 128 // group)
    return -(-n_groups // several) * several // EIGHT


def _pair(name: str, stored: Stored) -> tuple[int, int]:
    shape = stored[name].shape
    if len(shape) != 2:
        raise MisshapenTensor(f"{name} has shape {shape}, and a matrix of words was expected")
    check(stored, name, name, (shape,), ("I32",))
    return shape[0], shape[1]


def _packed(module: str, shape: tuple[int, int], build: partial[PackedWeight]) -> Packed:
    return Packed(format="int4", parts={part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}, shape=shape, build=build)


def _build_gemm(group: int, parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import GroupRows, as_blocks, constant, pack
    words_DW, scales_GF = parts["qweight"], parts["scales"]
    codes = torch.empty(scales_GF.shape[1], words_DW.shape[0] // 2, dtype=torch.uint8)
    for start in range(0, words_DW.shape[1], _STEP):
        part = _in_order(words_DW[:, start : start + _STEP]).T
        codes[start * EIGHT : start * EIGHT + part.shape[0]] = pack(part, 4)
    zeros = constant(_in_order(parts["qzeros"]).T.contiguous())
    return as_blocks(GroupRows(codes=codes, scales=scales_GF.T.contiguous(), group=group, n_columns=words_DW.shape[0], width=4, zeros=zeros))


def _in_order(words: Tensor) -> Tensor:
    """(columns, words) -> (columns, rows), the codes of each word put in order."""
    from pellucid.weights.group_rows import spread
    return spread(words.contiguous(), 4).view(words.shape[0], -1, EIGHT)[..., list(PLACES)].flatten(1)


def _build_gemv(group: int, parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import GroupRows, as_blocks, constant, spread
    codes = parts["qweight"].contiguous().view(torch.uint8)
    n_groups = codes.shape[1] * 2 // group
    zeros = constant(spread(parts["qzeros"].contiguous(), 4)[:, :n_groups].contiguous())
    return as_blocks(GroupRows(codes=codes, scales=parts["scales"][:, :n_groups].contiguous(), group=group, n_columns=codes.shape[1] * 2, width=4, zeros=zeros))
