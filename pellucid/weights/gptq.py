"""GPTQ as AutoGPTQ and GPTQModel write it: whole numbers of 2, 3, 4 or 8 bits, columns in groups, perhaps in the order of activation. No torch above functions.

    X.qweight  I32 (columns * bits / 32, rows)   codes of a row one after another, low bits first, those of 3 bits across words
    X.qzeros   I32 (groups, rows * bits / 32)    the code that means zero, less one; as it is in format gptq_v2
    X.scales   F16 (groups, rows)                X.g_idx I32 (columns,): the group of each column

number = scale * (code - zero), zero = (stored + 1) modulo 2^bits:
https://github.com/AutoGPTQ/AutoGPTQ/blob/9f7d37072917ab3a7545835f23e808294a542153/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
gptq_v2 and `dynamic`: https://github.com/ModelCloud/GPTQModel/blob/f4c327a17eb3e24524d5a97a3d682e3696ae6a28/gptqmodel/quantization/config.py
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.errors import BadConfig, MisshapenTensor
from pellucid.weights.quantization import FLOATS, Packed, Peek, Quantization, Settings, Stored, check, matches, per

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

BITS = (2, 3, 4, 8)
_HOW_MADE = ("damp_percent damp_auto_increment static_groups true_sequential model_name_or_path model_file_base_name dataset tokenizer batch_size "
             "pad_token_id model_seqlen module_name_preceding_first_block block_name_to_quantize cache_block_outputs act_group_aware mse meta quantizer "
             "nsamples seqlen iters lr low_gpu_mem_usage adapter uri hyb_act gptaq v2 v2_alpha offload_to_disk offload_to_disk_path pack_impl")
_HOW_RUN = "use_cuda_fp16 max_input_length backend disable_exllama use_exllama exllama_config use_marlin"


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How the matrices named .qweight are packed; None where there are none. Raises what `check` raises, and BadConfig where settings and tensors disagree."""
    modules = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    if not modules:
        return None
    bits, group, ordered = settings.count("bits", among=BITS), settings.count("group_size"), settings.flag("desc_act", False)
    format = settings.choice("checkpoint_format", "format", among=("gptq", "gptq_v2"), default="gptq")
    symmetric = settings.flag("sym", True)
    settings.expect(pack_dtype="int32", is_marlin_format=False, rotation=None)
    settings.choice("method", "quant_method", among=("gptq",), default="gptq")
    settings.inert("how the codes were found", _HOW_MADE)
    settings.inert("chooses a kernel of another program", _HOW_RUN)
    settings.inert("which modules are packed, their tensors say", "lm_head modules_in_block_to_quantize modules_to_not_convert")
    dynamic, matrices = settings("dynamic", default={}), {}
    for module in modules:
        own = {"bits": bits, "group_size": group, "desc_act": ordered} | _overridden(settings, dynamic, module)
        matrices[f"{module}.weight"] = _matrix(module, own["bits"], own["group_size"], own["desc_act"], format == "gptq", stored, settings.where)
    widths = sorted({packed.format for packed in matrices.values()})
    shown = f"gptq: {' and '.join(widths)}, {per(group)}{', columns in the order of activation' * ordered}"
    return Quantization(method="gptq", shown=shown, matrices=matrices, biases=frozenset(f"{module}.bias" for module in modules),
                        facts={"bits": bits, "group_size": group, "desc_act": ordered, "symmetric": symmetric, "format": format})


def _overridden(settings: Settings, dynamic: Any, module: str) -> dict[str, Any]:
    """What `dynamic` says of this module: the first of its patterns that matches, a leading - for modules that are not quantized."""
    if not isinstance(dynamic, Mapping):
        raise BadConfig(f"{settings.where}: dynamic is {dynamic!r:.60}, and an object from patterns to settings was expected")
    for pattern, own in dynamic.items():
        if not matches(pattern.removeprefix("+:").removeprefix("-:"), module, settings.where):
            continue
        if pattern.startswith("-:"):
            raise BadConfig(f"{settings.where}: dynamic says by {pattern!r} that {module} is not packed, and {module}.qweight is there. Which is right?")
        part = settings.part(own, f"dynamic[{pattern!r}]")
        part.inert("how the codes were found", _HOW_MADE + " sym")
        found = {"bits": part.count("bits", default=0, among=(0, *BITS)), "group_size": part.count("group_size", default=0),
                 "desc_act": part("desc_act", default=None)}
        return {key: value for key, value in found.items() if value not in (0, None) or value is False}
    return {}


def _matrix(module: str, bits: int, group: int, ordered: bool, one_less: bool, stored: Stored, where: str) -> Packed:
    weight = f"{module}.qweight"
    shape = stored[weight].shape
    if len(shape) != 2 or shape[0] * 32 % bits:
        raise MisshapenTensor(f"{weight} has shape {shape}, and (columns * {bits} / 32, rows) was expected: {bits} bits a number")
    columns, rows = shape[0] * 32 // bits, shape[1]
    group = columns if group == -1 else group
    if group < 1:
        raise BadConfig(f"{where}: group_size is {group}, and a number of columns was expected, or -1 for all")
    groups = -(-columns // group)
    check(stored, weight, weight, (shape,), ("I32",))
    check(stored, f"{module}.scales", weight, ((groups, rows),), FLOATS)
    check(stored, f"{module}.qzeros", weight, ((groups, -(-rows * bits // 32)),), ("I32",))
    parts = {part: f"{module}.{part}" for part in ("qweight", "scales", "qzeros")}
    if ordered or f"{module}.g_idx" in stored:
        check(stored, f"{module}.g_idx", weight, ((columns,),), ("I32", "I64"))
        parts["g_idx"] = f"{module}.g_idx"
    build = partial(_build, module, bits, min(group, columns), ordered, one_less)
    return Packed(format=f"int{bits}", parts=parts, shape=(rows, columns), build=build)


def _build(module: str, bits: int, group: int, ordered: bool, one_less: bool, parts: Mapping[str, Tensor]) -> PackedWeight:
    import torch

    from pellucid.weights.group_rows import GroupRows, arranged, constant, pack, spread
    words_FW, scales_FG = parts["qweight"].T.contiguous(), parts["scales"].T.contiguous()
    middle = 4 if bits == 3 else 0  # three bits are kept in four, in the middle of them
    codes = pack(spread(words_FW, 3) + middle, 4) if bits == 3 else words_FW.view(torch.uint8)
    zeros_GF = spread(parts["qzeros"].contiguous(), bits)[:, : scales_FG.shape[0]]
    zeros = constant(((zeros_GF + one_less) & (1 << bits) - 1).T.contiguous() + middle)
    rows = GroupRows(codes=codes, scales=scales_FG, group=group, n_columns=words_FW.shape[1] * 32 // bits, width=4 if bits == 3 else bits, zeros=zeros)
    return arranged(rows, parts.get("g_idx"), ordered=ordered, name=f"{module}.g_idx")
