"""bitsandbytes: NF4 and FP4, sixteen values that are not evenly spaced, and int8 rows. No torch above functions.

    4 bits   X.weight, bytes of two codes, the first one high, all rows one after another; X.weight.absmax, a scale for each `blocksize` numbers;
             X.weight.quant_map F32 (16,), the values; X.weight.quant_state.bitsandbytes__nf4, JSON: sizes and offset
             double quantization: absmax U8, codes of nested_quant_map F32 (256,), times nested_absmax for each nested_blocksize, plus nested_offset
    int8     X.weight I8 (rows, columns), X.SCB F32 (rows,), the row's largest number; X.weight_format U8 (), 0: in rows

https://github.com/bitsandbytes-foundation/bitsandbytes/tree/95f9af309d4d5793847169c39288dcd3fcbdf564/bitsandbytes: functional.py (QuantState),
backends/default/ops.py (dequantize_4bit), _ops.py (int8_vectorwise_dequant)
"""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.errors import BadCheckpoint, MisshapenTensor, MissingTensors, UnsupportedModel
from pellucid.weights.quantization import Packed, Peek, Quantization, Settings, Stored, check

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

_STATE = ".quant_state.bitsandbytes__"
_NUMBER_BYTES = {"U8": 1, "I8": 1, "BF16": 2, "F16": 2, "F32": 4}  # what bnb_4bit_quant_storage may be
PART = 1 / 127  # int8_vectorwise_dequant: a row's largest number is stored as 127


@dataclass(frozen=True, slots=True)
class State:
    """The quant_state of one matrix; `nested` is (blocksize, offset) of its scales, where they are packed too."""

    kind: str
    block: int
    shape: tuple[int, int]
    nested: tuple[int, float] | None


def read(settings: Settings, stored: Stored, peek: Peek) -> Quantization | None:
    """How the matrices with a quant_state or an SCB are packed; None where there are none. Raises what `check` raises, BadCheckpoint for a broken state."""
    fours = {name.split(_STATE)[0]: name for name in stored if _STATE in name}
    eights = [name.removesuffix(".SCB") for name in stored if name.endswith(".SCB")]
    if not fours and not eights:
        return None
    settings.choice("quant_method", among=("bitsandbytes",), default="bitsandbytes")
    settings.inert("the tensors say which it is", "load_in_4bit load_in_8bit _load_in_4bit _load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant "
                                                  "bnb_4bit_quant_storage llm_int8_skip_modules llm_int8_has_fp16_weight")
    settings.inert("the model's own dtype is what it computes in", "bnb_4bit_compute_dtype")
    settings.inert("activations are rounded in small groups here or not at all, so none stands out", "llm_int8_threshold llm_int8_enable_fp32_cpu_offload")
    states = {weight: _state(name, peek(name)) for weight, name in fours.items()}
    matrices = {weight: _four(weight, fours[weight], state, stored) for weight, state in states.items()}
    matrices |= {f"{module}.weight": _eight(module, stored, peek) for module in eights}
    kinds = list(dict.fromkeys((state.kind, state.block, state.nested is not None) for state in states.values()))
    shown = [f"{kind}, a scale for {block} numbers{', packed too' * nested}" for kind, block, nested in kinds] + ["int8, a scale for each row"] * bool(eights)
    facts = [{"type": kind, "block": block, "double_quantized": nested} for kind, block, nested in kinds] + [{"type": "int8"}] * bool(eights)
    notes = ("its authors run it with activations in 8-bit numbers, but for those that stand out; here --activations decides",) if eights else ()
    return Quantization(method="bitsandbytes", shown=f"bitsandbytes: {' and '.join(shown)}", matrices=matrices, facts={"groups": facts}, notes=notes)


def _state(name: str, raw: bytes) -> State:
    try:
        facts = json.loads(raw)
        rows, columns = facts["shape"]
        nested = (facts["nested_blocksize"], float(facts["nested_offset"])) if "nested_blocksize" in facts else None
        state = State(facts["quant_type"], facts["blocksize"], (rows, columns), nested)
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise BadCheckpoint(f"{name} is no quant_state as bitsandbytes writes it ({type(e).__name__}: {e}): {raw[:60]!r}") from None
    sizes = (state.block, rows, columns, *(nested[:1] if nested else ()))
    if not all(type(n) is int and n > 0 for n in sizes) or not math.isfinite(nested[1] if nested else 0.0):
        raise BadCheckpoint(f"{name} says {facts!r:.100}, and positive sizes were expected")
    if state.kind not in ("nf4", "fp4") or not name.endswith(_STATE + state.kind):
        raise UnsupportedModel(f"{name} says quant_type {state.kind!r:.40} (read: 'nf4' and 'fp4', as the tensor's name has it)")
    if columns % 2:
        raise UnsupportedModel(f"{name} is of a matrix with {columns} columns; an even number is read, so that every row begins with a byte of its own")
    return state


def _four(weight: str, name: str, state: State, stored: Stored) -> Packed:
    if weight not in stored:
        raise MissingTensors(f"{name} is there, and {weight} is not. Is a shard missing?")
    n = math.prod(state.shape)
    n_bytes = math.prod(stored[weight].shape) * _NUMBER_BYTES.get(stored[weight].dtype, 0)
    if n_bytes != n // 2:
        raise MisshapenTensor(f"{weight} is {stored[weight].dtype} of shape {stored[weight].shape}, {n_bytes:,} bytes, and its quant_state of {state.shape} "
                              f"makes it {n // 2:,}")
    n_scales = -(-n // state.block)
    check(stored, f"{weight}.absmax", weight, ((n_scales,), (n_scales, 1)), ("U8",) if state.nested else ("F32",))
    check(stored, f"{weight}.quant_map", weight, ((16,),), ("F32",))
    parts = {"codes": weight, "scales": f"{weight}.absmax", "book": f"{weight}.quant_map", "state": name}
    if state.nested:
        check(stored, f"{weight}.nested_absmax", weight, ((-(-n_scales // state.nested[0]),),), ("F32",))
        check(stored, f"{weight}.nested_quant_map", weight, ((256,),), ("F32",))
        parts |= {"nested": f"{weight}.nested_absmax", "nested_book": f"{weight}.nested_quant_map"}
    return Packed(format=state.kind, parts=parts, shape=state.shape, build=partial(build_four, state))


def _eight(module: str, stored: Stored, peek: Peek) -> Packed:
    weight, parts = f"{module}.weight", {"codes": f"{module}.weight", "scales": f"{module}.SCB"}
    if weight not in stored:
        raise MissingTensors(f"{module}.SCB is there, and {weight} is not. Is a shard missing?")
    shape = stored[weight].shape
    if len(shape) != 2:
        raise MisshapenTensor(f"{weight} has shape {shape}, and a matrix was expected")
    check(stored, weight, weight, (shape,), ("I8",))
    check(stored, f"{module}.SCB", weight, ((shape[0],),), ("F32",))
    if (format := f"{module}.weight_format") in stored:
        parts["format"] = format
        if any(peek(format)):
            raise UnsupportedModel(f"{format} is {peek(format)[0]}, an order of the numbers that only one kind of GPU reads (read: 0, in rows). Save it anew.")
    return Packed(format="int8", parts=parts, shape=shape, build=build_eight)


def build_four(state: State, parts: Mapping[str, Tensor]) -> PackedWeight:
    """A matrix of sixteen values: codes, scales and book, and nested and nested_book where the state says so."""
    import torch

    from pellucid.weights.group_rows import GroupRows
    rows, columns = state.shape
    pairs = parts["codes"].contiguous().view(torch.uint8).view(rows, columns // 2)
    group = math.gcd(columns, state.block)  # blocks follow one another through all rows: where they do not end with one, a scale stands more than once
    first = torch.arange(rows)[:, None] * columns + torch.arange(0, columns, group)
    scales = _scales(state, parts)[first // state.block]
    return GroupRows(codes=pairs << 4 | pairs >> 4, scales=scales, group=group, n_columns=columns, width=4, book=parts["book"])


def _scales(state: State, parts: Mapping[str, Tensor]) -> Tensor:
    """A scale for each block, float32."""
    scales = parts["scales"].flatten()
    if state.nested is None:
        return scales
    block, offset = state.nested
    return parts["nested_book"][scales.int()] * parts["nested"].repeat_interleave(min(block, scales.numel()))[: scales.numel()] + offset


def build_eight(parts: Mapping[str, Any]) -> PackedWeight:
    """A matrix of codes, int8 (rows, columns), with scales (rows,), each row's largest number."""
    import torch

    from pellucid.weights.group_rows import GroupRows, as_blocks
    codes = parts["codes"].view(torch.uint8)
    return as_blocks(GroupRows(codes=codes, scales=parts["scales"][:, None] * PART, group=codes.shape[1], n_columns=codes.shape[1], byte=torch.int8))
