"""Dense matrices packed while a model is loaded, one after another: what adapters are trained beside (QLoRA), without a packed checkpoint on the disk."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid.errors import BadRequest
from pellucid.model.decoder import Decoder
from pellucid.model.experts import Router
from pellucid.model.parts import Project
from pellucid.ops.interface import Weight
from pellucid.ops.quantize import nf4
from pellucid.ops.quantize.rows import check, quantize_rows
from pellucid.weights import bitsandbytes
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.gguf import BY_NAME
from pellucid.weights.packed_rows import PackedWeight

GGUF = ("q8_0", "q6_k", "q5_k", "q4_k")
AT_LOAD = ("nf4", "int8", *GGUF)
_PART = 1 << 22  # numbers that are in float32 at a time


def check_asked(asked: str, checkpoint: Checkpoint) -> str:
    """The format by its name. Raises BadRequest for one that is not packed in memory, and for a checkpoint that is packed."""
    if (format := asked.lower()) not in AT_LOAD:
        raise BadRequest(f"quantize={asked!r} is no format that matrices are packed in while a model is loaded ({', '.join(AT_LOAD)}). Mixes of several are "
                         f"written: pellucid convert MODEL model.gguf --quantize Q4_K_M", field="quantize")
    if checkpoint.format == "gguf" or checkpoint.packed:
        how = "a GGUF file, whose blocks are used as they are" if checkpoint.format == "gguf" else "packed already"
        raise BadRequest(f"quantize={asked}: {checkpoint.name!r} is {how}. Leave it out, or give the checkpoint it was made from", field="quantize")
    return format


def copied_bytes(decoder: Decoder, format: str, dtype: torch.dtype, *, repacked: bool) -> int:
    """Memory that a decoder takes whose matrices are packed, a decoder without memory says it; the rest counted as if all of it were copied."""
    packed = {name: p for name, p in decoder.named_parameters() if is_packed(decoder, name)}
    rest = sum(p.numel() for name, p in decoder.named_parameters() if name not in packed)
    return dtype.itemsize * rest + (2 if repacked else 1) * sum(_bytes(tuple(p.shape), format) for p in packed.values())


def is_packed(decoder: Decoder, name: str) -> bool:
    """Matrices of the blocks; embedding and unembedding stay as they are, as bitsandbytes leaves them, and routers, where a rounding chooses another expert."""
    path, _, leaf = name.rpartition(".")
    module = decoder.get_submodule(path)
    return leaf == "weight" and name.startswith("blocks.") and isinstance(module, Project) and not isinstance(module, Router)


def pack_dense(decoder: Decoder, ours: dict[str, Weight], format: str, checkpoint: Checkpoint) -> str:
    """Packs every matrix of the blocks in its place in `ours`, where they are views of the files, so that no two dense ones are held; a note on what it did.

    Raises BadRequest for rows that the format's blocks do not divide, BadCheckpoint for what is no number.
    """
    n, before, after = 0, 0, 0
    for name, weight in ours.items():
        if isinstance(weight, Tensor) and is_packed(decoder, name):
            packed = _packed(weight, format, name)
            n, before, after = n + 1, before + weight.nbytes, after + packed.nbytes
            ours[name] = packed
            del weight
            checkpoint.release()
    return f"{n:,} matrices packed in {format} as they were loaded: {before / 1e6:,.0f} MB became {after / 1e6:,.0f} MB"


@torch.no_grad()
def _packed(x_FD: Tensor, format: str, name: str) -> PackedWeight:
    if format in GGUF:
        return quantize_rows(x_FD, format.upper(), name=name)
    F, D = x_FD.shape
    whole = nf4.BLOCK // math.gcd(D, nf4.BLOCK)  # rows after which a block ends with a row
    parts = x_FD.split(max(1, _PART // (D * whole)) * whole)
    for part in parts:
        check(part.float(), format.upper(), name)
    if format == "int8":  # a scale a row, of its largest number, as bitsandbytes has it: see weights/bitsandbytes.py
        largest_F = torch.cat([part.float().abs().amax(1) for part in parts])
        codes = [(part.float() / (largest * bitsandbytes.PART).clamp(min=1e-30)[:, None]).round().to(torch.int8)
                 for part, largest in zip(parts, largest_F.split(len(parts[0])), strict=True)]
        return bitsandbytes.build_eight({"codes": torch.cat(codes), "scales": largest_F})
    if D % 2:
        raise BadRequest(f"{name} has rows of {D:,} numbers, and two of nf4 share a byte. Take int8", field="quantize")
    scales = [nf4.scales(part) for part in parts]
    codes = [nf4.codes(part, found) for part, found in zip(parts, scales, strict=True)]
    state = bitsandbytes.State("nf4", nf4.BLOCK, (F, D), None)
    return bitsandbytes.build_four(state, {"codes": torch.cat(codes), "scales": torch.cat(scales), "book": torch.tensor(nf4.BOOK)})


def _bytes(shape: tuple[int, ...], format: str) -> int:
    """Of a matrix in this format, in memory."""
    F, D = shape
    if format == "nf4":
        return F * D // 2 + 4 * F * (D // math.gcd(D, nf4.BLOCK)) + 4 * len(nf4.BOOK)
    if format == "int8":  # in blocks of Q8_0, with a scale a row beside: see weights/group_rows.as_blocks
        return F * D + (2 * (F * D // 32) + 4 * F if D % 32 == 0 else 4 * F)
    of = BY_NAME[format.upper()]
    return F * (D // of.n_numbers) * of.n_bytes
